"""Tell DICOM files from others by their first bytes, without importing pydicom."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from medmllm_plugins.utils.regular_files import head

PREFIX_END = 132
"""Bytes of the preamble and the prefix ``DICM`` (PS3.10 section 7.1)."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Whether data elements leave out the VR (value representation), and their byte order, ``"<"`` or ``">"``."""

    implicit: bool
    byte_order: str


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does, see :func:`starts_like_dicom`.

    Raises:
        DataError: the file cannot be opened or is empty.
    """
    return starts_like_dicom(head(path, PREFIX_END))


def starts_like_dicom(start: bytes) -> bool:
    """Return whether 132 bytes begin a file with the DICOM prefix, or with a data element as files without it do."""
    return start[128:132] == b"DICM" or encoding_without_prefix(start) is not None


def encoding_without_prefix(start: bytes) -> Encoding | None:
    """Return the encoding of a first data element of group 2 or 8; ``None`` if there is no such element."""
    if len(start) < 8:
        return None
    for byte_order in "<>":
        group, number, length = struct.unpack_from(f"{byte_order}HHI", start)
        if group not in (0x0002, 0x0008) or number > 0x0100:
            continue
        if has_vr(start):
            return Encoding(False, byte_order)
        # Without a VR: a length of group 8, or one of the short values that come first in it.
        if byte_order == "<" and length <= 0x100 and (number or length == 4):
            return Encoding(True, byte_order)
    return None


def has_vr(element: bytes) -> bool:
    """Return whether the first 8 bytes of an element have two capital letters where the VR is written."""
    return element[4:6].isalpha() and element[4:6].isupper()
