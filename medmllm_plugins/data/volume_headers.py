"""Headers of NIfTI, NRRD and MetaImage files, checked before SimpleITK reads them.

SimpleITK reads a truncated NIfTI file without a word and replaces spacings it cannot use by 1 mm.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from medmllm_plugins.data.dicom_tags import is_dicom
from medmllm_plugins.data.gzipped import CHUNK, damaged, unpacked_head, unpacked_size
from medmllm_plugins.data.itk import MAX_VOXELS, check_spacing, head
from medmllm_plugins.errors import DataError

# Bytes a voxel, by MetaImage's names.
_META_BYTES = {
    **dict.fromkeys(("CHAR", "UCHAR"), 1),
    **dict.fromkeys(("SHORT", "USHORT"), 2),
    **dict.fromkeys(("INT", "UINT", "LONG", "ULONG", "FLOAT"), 4),
    **dict.fromkeys(("LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
}
_NRRD_SPACES = ("right-anterior-sup", "left-anterior-sup", "left-posterior-sup", "ras", "las", "lps")
_BLANK = (b"\n\n", b"\r\n\r\n")


def check_header(path: Path, kind: str, *, whole: bool) -> None:
    """Check a header; with ``whole`` also that the file holds all the voxels it states.

    Args:
        path: the file.
        kind: ``"nifti"``, ``"nrrd"`` or ``"metaimage"``.
        whole: whether to look behind the header.

    Raises:
        DataError: see :func:`medmllm_plugins.data.volumes.read_volume`.
    """
    _CHECKS[kind](path, whole)


def packed_nifti_sum(path: Path) -> str:
    """CRC-32 and length that a ``.nii.gz`` file states of its content (RFC 1952), checked against the header.

    A file cut short states chance numbers, which this finds without unpacking it all; other damage is found when the
    volume is read.

    Returns:
        The sum and length as 16 hexadecimal digits.

    Raises:
        DataError: see :func:`medmllm_plugins.data.volumes.volume_facts`; or the length does not go with the header.
    """
    header = nifti_header(unpacked_head(path, 540))
    if header is None:
        raise wrong_content(path, "a NIfTI file in one piece (n+1 or n+2)")
    wanted = int(header.offset) + math.prod(header.shape[1 : header.shape[0] + 1]) * header.bits // 8
    with path.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        end = opened.read(8)
    # The length is stated modulo 4 GiB; some writers leave a few bytes behind the voxels.
    if (int.from_bytes(end[4:], "little") - wanted) % (1 << 32) >= CHUNK:
        raise damaged(path)
    return end.hex()


def not_three(path: Path, shape: Sequence[int]) -> DataError:
    """What to raise where there are more or fewer than three dimensions."""
    return DataError(
        f"{path}: expected a volume of three dimensions [D, H, W], found {len(shape)}: {list(shape)}; "
        "save one volume a file."
    )


def wrong_content(path: Path, wanted: str) -> DataError:
    """What to raise where the content is not what the name says."""
    found = "another format"
    content = head(path, 352)
    for name, prefix in (("gzip", b"\x1f\x8b"), ("NRRD", b"NRRD"), ("NumPy", b"\x93NUMPY"), ("MetaImage", b"ObjectT")):
        found = name if content.startswith(prefix) else found
    found = "DICOM" if is_dicom(path) else found
    found = "uncompressed NIfTI" if content[344:347] in (b"n+1", b"ni1") else found
    return DataError(f"{path}: expected {wanted} by its name, found {found}; correct the name or get the file again.")


def _check_nifti(path: Path, whole: bool) -> None:
    """Check a NIfTI header and how much follows it (NIfTI-1 and NIfTI-2, nifti.nimh.nih.gov)."""
    packed = path.name.lower().endswith(".gz")
    if packed and head(path, 2) != b"\x1f\x8b":
        raise wrong_content(path, "a compressed NIfTI file")
    start = unpacked_head(path, 540) if packed else head(path, 540)
    header = nifti_header(start)
    if header is None:
        raise wrong_content(path, "a NIfTI file in one piece (n+1 or n+2)")
    dimensions = header.shape[0]
    sizes = header.shape[1 : dimensions + 1]
    if not 1 <= dimensions <= 7 or min(sizes) < 1:
        raise DataError(f"{path}: expected sizes of at least 1 along 2 or 3 axes, found a damaged NIfTI header.")
    if dimensions < 2 or any(count != 1 for count in sizes[3:]):
        raise not_three(path, sizes[::-1])
    if math.prod(sizes) > MAX_VOXELS:
        raise DataError(f"{path}: expected at most {MAX_VOXELS} voxels, found {math.prod(sizes)}; crop the volume.")
    # From the raw numbers, as SimpleITK makes 1 mm of those it cannot use.
    if not all(math.isfinite(step) and step > 0 for step in header.spacing[: min(dimensions, 3)]):
        check_spacing(header.spacing[: min(dimensions, 3)][::-1], path)
    if not (header.placed or dimensions == 2):
        raise DataError(
            f"{path}: expected a NIfTI file that states its orientation, found qform and sform both unset, so left and "
            "right are unknown; set one, or save the voxels as .npy in the orientation you read with."
        )
    if whole:
        wanted = int(header.offset) + math.prod(sizes) * header.bits // 8
        found = unpacked_size(path) if packed else path.stat().st_size
        if found < wanted:
            raise cut_short(path, wanted, found)
        if header.floats is not None:
            _check_stored_floats(path, header, math.prod(sizes), packed)


def _check_stored_floats(path: Path, header: Nifti, count: int, packed: bool) -> None:
    """Look for NaN and infinity in the file itself, as SimpleITK reads both as 0."""
    dtype = np.dtype(header.floats)
    with gzip.open(path) if packed else path.open("rb") as opened:
        opened.seek(int(header.offset))
        left, bad = count, 0
        while left:
            values = np.frombuffer(opened.read(min(left * dtype.itemsize, CHUNK)), dtype)
            bad += int(values.size - np.count_nonzero(np.isfinite(values)))
            left -= values.size
    if bad:
        raise DataError(
            f"{path}: expected finite values, found {bad} of {count} voxels NaN or infinite; replace them, say by the "
            "value of air, or leave the volume out."
        )


@dataclass(frozen=True, slots=True)
class Nifti:
    """What matters of a NIfTI header."""

    shape: tuple[int, ...]  # number of dimensions, then their sizes, x first
    spacing: tuple[float, ...]  # x first
    bits: int
    offset: float
    placed: bool
    floats: str | None  # NumPy's name of the type if it is a float of 32 or 64 bits
    dtype: str | None  # NumPy's name of the type if it is one number a voxel
    scaling: tuple[float, float] | None  # slope and intercept; None where they are not finite


_NUMBERS = {
    (2, 8): "u1",
    (4, 16): "i2",
    (8, 32): "i4",
    (16, 32): "f4",
    (64, 64): "f8",
    (256, 8): "i1",
    (512, 16): "u2",
    (768, 32): "u4",
}
"""NIfTI's code and bits to NumPy's name of the type."""


def nifti_header(start: bytes) -> Nifti | None:
    """Read a NIfTI-1 or NIfTI-2 header in one file with its voxels, of either byte order.

    Args:
        start: the first 540 bytes of the file.

    Returns:
        The header; ``None`` if it is none.
    """
    for order in "<>":
        if len(start) >= 348 and struct.unpack_from(f"{order}i", start)[0] == 348 and start[344:347] == b"n+1":
            codes = struct.unpack_from(f"{order}2h", start, 252)
            spacing = struct.unpack_from(f"{order}8f", start, 76)[1:]
            shape, bits = struct.unpack_from(f"{order}8h", start, 40), struct.unpack_from(f"{order}h", start, 72)[0]
            code = struct.unpack_from(f"{order}h", start, 70)[0]
            offset, slope, intercept = struct.unpack_from(f"{order}3f", start, 108)
        elif len(start) >= 540 and struct.unpack_from(f"{order}i", start)[0] == 540 and start[4:7] == b"n+2":
            codes = struct.unpack_from(f"{order}2i", start, 344)
            spacing = struct.unpack_from(f"{order}8d", start, 104)[1:]
            shape, bits = struct.unpack_from(f"{order}8q", start, 16), struct.unpack_from(f"{order}h", start, 14)[0]
            code = struct.unpack_from(f"{order}h", start, 12)[0]
            offset, slope, intercept = struct.unpack_from(f"{order}q2d", start, 168)
        else:
            continue
        if not math.isfinite(offset) or offset < 0 or bits < 1:
            return None
        floats = {(16, 32): f"{order}f4", (64, 64): f"{order}f8"}.get((code, bits))
        kind = _NUMBERS.get((code, bits))
        # As SimpleITK does: no slope is one of 1, whatever the intercept.
        stated = (1.0 if slope == 0 else float(slope), float(intercept))
        scaling = stated if all(map(math.isfinite, stated)) else None
        placed = any(one > 0 for one in codes)
        return Nifti(shape, spacing, bits, offset, placed, floats, kind and f"{order}{kind}", scaling)
    return None


def _check_nrrd(path: Path, whole: bool) -> None:
    """Check an NRRD header (teem.sourceforge.net/nrrd/format.html) and, of packed data, the check sum."""
    with path.open("rb") as opened:
        start = opened.read(1 << 16)
    if not start.startswith(b"NRRD"):
        raise wrong_content(path, "an NRRD file")
    text, gap, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = [line.partition(": ") for line in text.decode("ascii", "replace").split("\n") if line[:1] != "#"]
    fields = {name.strip().lower(): value.strip() for name, colon, value in lines if colon and ":=" not in name}
    space = fields.get("space", "").lower()
    if not space.startswith(_NRRD_SPACES) and fields.get("dimension") != "2":
        raise DataError(
            f"{path}: expected an NRRD file whose field `space` states left, posterior and superior (or right, "
            "anterior), found none of these, so left and right are unknown; set it, or save the voxels as .npy."
        )
    for value in fields.get("spacings", "").split():
        # "nan" stands for axes that are not in space, of which a volume has none.
        check_spacing([_number(value)], path)
    for vector in re.findall(r"\(([^)]*)\)", fields.get("space directions", "")):
        check_spacing([math.hypot(*(_number(part) for part in vector.split(",")))], path)
    if whole and fields.get("encoding", "").lower() in ("gzip", "gz"):
        other = fields.get("data file", fields.get("datafile", ""))
        if not other and gap:
            unpacked_size(path, offset=min(at + len(end) for end in _BLANK if (at := start.find(end)) >= 0))
        elif other and (path.parent / other).is_file():
            unpacked_size(path.parent / other)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_metaimage(path: Path, whole: bool) -> None:
    """Check a MetaImage header, whose reader writes to standard error where it meets a fault."""
    with path.open("rb") as opened:
        start = opened.read(1 << 16)
    fields: dict[str, str] = {}
    offset = 0
    while "ElementDataFile" not in fields:
        end = start.find(b"\n", offset)
        name, equals, value = start[offset : end if end >= 0 else len(start)].decode("ascii", "replace").partition("=")
        if not equals:
            raise wrong_content(path, "a MetaImage")
        fields[name.strip()] = value.strip()
        offset = end + 1 if end >= 0 else len(start)
    sizes = [int(size) for size in fields.get("DimSize", "").split() if size.isdigit()]
    kind = _META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if fields.get("NDims") != str(len(sizes)) or not sizes or min(sizes) < 1 or kind is None:
        raise DataError(
            f"{path}: expected a MetaImage header with NDims, DimSize and an ElementType of real numbers that agree, "
            "found others; convert the file anew."
        )
    if len(sizes) < 2 or any(size != 1 for size in sizes[3:]):
        raise not_three(path, sizes[::-1])
    for name in ("ElementSpacing", "ElementSize"):
        if name in fields:
            check_spacing([_number(value) for value in fields[name].split()][:3], path)
    source = fields["ElementDataFile"]
    data = path if source == "LOCAL" else path.parent / source
    if whole and (source == "LOCAL" or data.is_file()):
        packed = fields.get("CompressedData", "").lower() == "true"
        size = fields.get("CompressedDataSize", "0") if packed else str(math.prod(sizes) * kind)
        found = data.stat().st_size - (offset if source == "LOCAL" else 0)
        if size.isdigit() and found < int(size):
            raise cut_short(data, int(size), found)


_CHECKS: Final[dict[str, Callable[[Path, bool], None]]] = {
    "nifti": _check_nifti,
    "nrrd": _check_nrrd,
    "metaimage": _check_metaimage,
}


def cut_short(path: Path, wanted: int, found: int) -> DataError:
    """What to raise where there are fewer bytes than the header states."""
    return DataError(f"{path}: expected {wanted} bytes, found {found}: the file is cut short; get it again.")
