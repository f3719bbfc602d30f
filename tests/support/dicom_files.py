"""Small DICOM files for tests, written byte by byte, so that what is on disk does not depend on the reader's library.

(SimpleITK's own writer undoes the rescale, fills in tags and cannot write palettes or MONOCHROME1 as stored.) Only what
DICOM PS3.5 asks of an explicit little-endian file.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CT, MR, CR, US = (f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("2", "4", "1", "6.1"))
ENHANCED_CT = f"{CT}.1"
EXPLICIT, DEFLATED, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG_BASELINE, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"
MARKER = "ZzMarkerzZ"
"""Stands in every tag that says who the patient is."""

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_LONG = ("OB", "OW", "SQ", "UT", "UN")


def element(tag: int, kind: str, value: Any) -> bytes:
    """One data element; a list is a sequence of items, given as bytes."""
    if isinstance(value, list):
        body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)
    elif isinstance(value, bytes):
        body = value
    elif kind in ("US", "UL"):
        body = struct.pack("<H" if kind == "US" else "<I", value)
    elif isinstance(value, str):
        body = value.encode()
    else:
        body = "\\".join(f"{number:.10g}" for number in np.atleast_1d(value)).encode()
    if len(body) % 2:
        body += b"\0" if kind in ("UI", "OB") else b" "
    length = struct.pack("<HI", 0, len(body)) if kind in _LONG else struct.pack("<H", len(body))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + length + body


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    position: Sequence[float] | None = None,
    orientation: Sequence[float] | None = AXIAL,
    spacing: Any = (0.8, 0.7),
    rescale: tuple[Any, Any] | None = None,
    modality: str = "CT",
    sop: str = CT,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    series: str = "1.2.826.1",
    extra: dict[int, tuple[str, Any]] | None = None,
    syntax: str = EXPLICIT,
    fragments: Sequence[bytes] | None = None,
) -> Path:
    """Write one file.

    Args:
        path: where.
        pixels: stored values ``[rows, columns]``, ``[frames, rows, columns]`` or, in colour, ``[rows, columns, 3]``.
        position: Image Position (Patient), mm.
        orientation: Image Orientation (Patient).
        spacing: Pixel Spacing: between rows, between columns.
        rescale: intercept and slope.
        modality: Modality.
        sop: SOP class.
        photometric: photometric interpretation.
        bits: bits stored.
        series: Series Instance UID.
        extra: more tags, ``{tag: (type, value)}``; they replace those above.
        syntax: transfer syntax; the elements are explicit and little-endian in any case, or deflated.
        fragments: compressed pixels, in place of ``pixels``, which tell shape and type alone.
    """
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    shape = pixels.shape[:-1] if colour else pixels.shape
    size = pixels.itemsize * 8
    tags: dict[int, tuple[str, Any]] = {
        0x00080016: ("UI", sop),
        0x00080018: ("UI", "1.2.826.2"),
        0x00080020: ("DA", "19010203"),
        0x00080050: ("SH", MARKER),
        0x00080060: ("CS", modality),
        0x00080080: ("LO", MARKER),
        0x00080090: ("PN", MARKER),
        0x00081030: ("LO", MARKER),
        0x0008103E: ("LO", MARKER),
        0x00100010: ("PN", f"{MARKER}^{MARKER}"),
        0x00100020: ("LO", MARKER),
        0x00104000: ("LT", MARKER),
        0x0020000D: ("UI", "1.2.826.3"),
        0x0020000E: ("UI", series),
        0x00200010: ("SH", MARKER),
        0x00204000: ("LT", MARKER),
        0x00280002: ("US", 3 if colour else 1),
        0x00280004: ("CS", photometric),
        0x00280010: ("US", shape[-2]),
        0x00280011: ("US", shape[-1]),
        0x00280100: ("US", size),
        0x00280101: ("US", bits or size),
        0x00280102: ("US", (bits or size) - 1),
        0x00280103: ("US", int(pixels.dtype.kind == "i")),
        0x7FE00010: ("OB" if size == 8 else "OW", pixels.tobytes()),
    }
    if colour:
        tags[0x00280006] = ("US", 0)
    if len(shape) == 3:
        tags[0x00280008] = ("IS", str(shape[0]))
    if spacing is not None:
        tags[0x00280030] = ("DS", spacing)
    if rescale is not None:
        tags |= {0x00281052: ("DS", rescale[0]), 0x00281053: ("DS", rescale[1])}
    if position is not None:
        tags[0x00200032] = ("DS", position)
    if orientation is not None:
        tags[0x00200037] = ("DS", orientation)
    tags |= extra or {}
    meta = b"".join(
        element(tag, kind, value)
        for tag, kind, value in (
            (0x00020001, "OB", b"\0\1"),
            (0x00020002, "UI", sop),
            (0x00020003, "UI", "1.2.826.2"),
            (0x00020010, "UI", syntax),
            (0x00020012, "UI", "1.2.826.4"),
        )
    )
    if fragments is not None:
        del tags[0x7FE00010]
    body = b"".join(element(tag, *tags[tag]) for tag in sorted(tags))
    if fragments is not None:
        body += encapsulated(fragments)
    if syntax == DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(0x00020000, "UL", len(meta)) + meta + body)
    return path


def encapsulated(fragments: Sequence[bytes], table: bytes = b"") -> bytes:
    """The pixel element around compressed fragments, with an offset table that may be empty."""
    items = [part + b"\0" * (len(part) % 2) for part in (table, *fragments)]
    return (
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
        + b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )


def frame_tags(
    positions: Sequence[Sequence[float]],
    rescales: Sequence[tuple[float, float]] | None = None,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (0.8, 0.7),
) -> dict[int, tuple[str, Any]]:
    """The functional groups of an enhanced multi-frame file: one position and rescale for each frame."""
    shared = element(0x00209116, "SQ", [element(0x00200037, "DS", orientation)]) + element(
        0x00289110, "SQ", [element(0x00280030, "DS", spacing)]
    )
    frames = []
    for index, position in enumerate(positions):
        groups = element(0x00209113, "SQ", [element(0x00200032, "DS", position)])
        if rescales:
            intercept, slope = rescales[index]
            values = element(0x00281052, "DS", intercept) + element(0x00281053, "DS", slope)
            groups += element(0x00289145, "SQ", [values])
        frames.append(groups)
    return {0x52009229: ("SQ", [shared]), 0x52009230: ("SQ", frames)}


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    step: float = 2.5,
    origin: Sequence[float] = (-10.0, -20.0, 100.0),
    orientation: Sequence[float] = AXIAL,
    shuffle: bool = True,
    leave_out: Sequence[int] = (),
    **tags: Any,
) -> list[Path]:
    """Write one file for each slice of ``[D, H, W]``, along the normal, under names that do not tell the order.

    Returns:
        The paths in the order of the slices, without those left out.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    names = np.random.default_rng(7).permutation(len(voxels)) if shuffle else np.arange(len(voxels))
    paths = []
    for index, pixels in enumerate(voxels):
        if index not in leave_out:
            place = np.array(origin) + index * step * normal
            path = folder / f"IM{names[index]:04}.dcm"
            paths.append(write_dicom(path, pixels, position=place, orientation=orientation, **tags))
    return paths
