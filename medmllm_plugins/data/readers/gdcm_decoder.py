"""Decode one compressed DICOM frame with GDCM, in a child process of ``decoder_process``.

GDCM gets a DICOM file that holds the frame and the tags that say how it is compressed, and nothing of the user's file
besides. Stored values come back: no rescale is stated, and grey is called MONOCHROME2, which GDCM leaves as it is.
"""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

sitk.ProcessObject.SetGlobalWarningDisplay(False)
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
_INSTANCE = "2.25.1"
_NUMBERS = {
    **{0x00280002: "samples", 0x00280006: "planar", 0x00280010: "rows", 0x00280011: "columns"},
    **{0x00280100: "allocated", 0x00280101: "stored", 0x00280102: "high", 0x00280103: "signed"},
}


def decode(codestream: bytes, arguments: Mapping[str, Any]) -> npt.NDArray[np.generic]:
    """Decode one frame.

    ``codestream`` is the frame's fragments, joined. ``arguments`` are ``transfer_syntax``, ``photometric`` and those of
    ``_NUMBERS`` as the header states them, and ``dtype``, the type to return.

    Returns:
        ``[rows, columns]`` stored values, or of colour ``[rows, columns, 3]``, red, green and blue.

    Raises:
        ValueError: a value does not go into the type.
    """
    with _as_file(dicom_frame(codestream, arguments)) as name:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(name)
        pixels = sitk.GetArrayFromImage(reader.Execute())
    shape = (arguments["rows"], arguments["columns"], arguments["samples"])
    array: npt.NDArray[np.generic] = pixels.reshape(shape[: 3 if shape[2] > 1 else 2])
    limits = np.iinfo(arguments["dtype"])
    if array.dtype != limits.dtype and not (limits.min <= pixels.min() and pixels.max() <= limits.max):
        raise ValueError("values beyond the type that the header states")
    return array.astype(arguments["dtype"])


def dicom_frame(codestream: bytes, arguments: Mapping[str, Any]) -> bytes:
    """Return a DICOM file of explicit little-endian elements around one compressed frame."""
    meta = b"".join(
        (
            _element(0x00020001, "OB", b"\0\1"),
            _element(0x00020002, "UI", _SOP_CLASS.encode()),
            _element(0x00020003, "UI", _INSTANCE.encode()),
            _element(0x00020010, "UI", arguments["transfer_syntax"].encode()),
            _element(0x00020012, "UI", _INSTANCE.encode()),
        )
    )
    values = {0x00080016: ("UI", _SOP_CLASS.encode()), 0x00080018: ("UI", _INSTANCE.encode())}
    values[0x00280004] = ("CS", arguments["photometric"].encode("ascii"))
    for tag, name in _NUMBERS.items():
        if name != "planar" or arguments["samples"] > 1:
            values[tag] = ("US", struct.pack("<H", int(arguments[name])))
    content = b"".join(_element(tag, *values[tag]) for tag in sorted(values))
    codestream += b"\0" * (len(codestream) % 2)
    pixels = (
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE000, len(codestream))
        + codestream
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    length = _element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return b"\0" * 128 + b"DICM" + length + meta + content + pixels


def _element(tag: int, kind: str, value: bytes) -> bytes:
    value += (b" " if kind == "CS" else b"\0") * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if kind == "OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + length + value


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give bytes a file name: in memory where the platform can, so that a killed process leaves nothing behind."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frame.dcm")
        try:
            with open(descriptor, "wb", closefd=False) as opened:
                opened.write(content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "frame.dcm")
        with open(name, "wb") as opened:
            opened.write(content)
        yield name
