"""Headers of volumes, checked before any voxel is read; the base of the readers of each format."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers.byte_sources import Packing
from medmllm_plugins.data.readers.decode_limit import check_volume_size
from medmllm_plugins.data.readers.dicom_prefix import is_dicom
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import head, open_regular, size_of

IDENTITY: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SHEAR: Final = 1e-2
"""Axes whose directions have a scalar product above this are not perpendicular."""
MAX_SPACING: Final = 100.0
"""Largest plausible spacing, in mm."""
LONGEST_HEADER: Final = 1 << 20
"""Bytes of a text header; scanners' own fields take some kilobytes."""


@dataclass(frozen=True, slots=True)
class DataLocation:
    """Location of a volume's voxels.

    Attributes:
        path: the file; of detached headers not the header's.
        offset: bytes of that file before the data.
        skip: bytes of the unpacked data before the voxels.
        to_end: whether the voxels are the last bytes of the file, whatever is before them; raw data only.
    """

    path: Path
    offset: int = 0
    packing: Packing = "raw"
    skip: int = 0
    to_end: bool = False


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """A checked header.

    Attributes:
        shape: voxels along z, y and x; in the file x runs fastest.
        spacing: mm along z, y and x.
        direction: directions of x, y and z in LPS coordinates as the columns of a matrix, row by row; ``None`` if
            the file states none.
        flat: whether the file holds a two-dimensional image.
        scaling: slope and intercept from stored to real values.
        reversed_axes: whether z runs fastest in the file, not x.
    """

    path: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    direction: tuple[float, ...] | None
    flat: bool
    dtype: np.dtype[Any]
    data: DataLocation
    scaling: tuple[float, float] = (1.0, 0.0)
    reversed_axes: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels as stored, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_header(header: VolumeHeader) -> VolumeHeader:
    """Check size, spacing, directions and the length of raw data; return the header.

    Raises:
        DataError: the volume is above the decode limit; a spacing is not plausible; axes are not perpendicular; or raw
            data are shorter or longer than the header states.
    """
    path = header.path
    check_volume_size(path, math.prod(header.shape), max(header.data.skip, header.nbytes))
    check_spacing(header.spacing[1:] if header.flat else header.spacing, path)
    if header.direction is not None:
        axes = np.array(header.direction, np.float64).reshape(3, 3)
        with np.errstate(over="ignore", invalid="ignore"):
            shear = np.abs(axes.T @ axes - np.eye(3)).max()
        if not shear <= SHEAR:
            raise DataError(
                f"{path}: expected perpendicular axes with directions of length 1, got sheared ones; correct the "
                "header or resample the volume."
            )
    data = header.data
    if data.packing != "raw":
        return header
    with open_regular(data.path) as opened:
        size = size_of(opened)
    held = size - data.offset
    if held < header.nbytes:
        raise cut_short(data.path, header.nbytes, max(held, 0))
    if data.to_end:
        return replace(header, data=replace(data, offset=size - header.nbytes))
    if held > header.nbytes:
        raise DataError(
            f"{data.path}: expected {header.nbytes:,} bytes of voxels as the header states, got {held:,}: the header "
            "is damaged, or the file holds more than one volume; get it again or convert it."
        )
    return header


def three_axes(path: Path, sizes: Sequence[int]) -> tuple[tuple[int, int, int], bool]:
    """Return the shape along z, y and x, and whether there are two dimensions; ``sizes`` begin with x.

    Raises:
        DataError: there are fewer or more dimensions, or an axis has no voxel.
    """
    if not sizes or min(sizes) < 1 or max(sizes) > 1 << 40:
        raise DataError(f"{path}: expected sizes of at least 1 along 2 or 3 axes, got {shown(list(sizes[::-1]))}.")
    if len(sizes) < 2 or any(size != 1 for size in sizes[3:]):
        raise not_three(path, sizes[::-1])
    flat = len(sizes) == 2
    x, y, z = (*sizes, 1)[:3] if flat else sizes[:3]
    return (z, y, x), flat


def not_three(path: Path, shape: Sequence[int]) -> DataError:
    """Return the error for more or fewer than three dimensions; ``shape`` has x last."""
    return DataError(
        f"{path}: expected a volume of three dimensions [D, H, W], got {len(shape)}: {shown(list(shape))}; "
        "save one volume a file."
    )


def not_scalar(path: Path, what: str) -> DataError:
    """Return the error for voxels of several values."""
    return DataError(f"{path}: expected one value a voxel, got {what}; extract one channel.")


def wrong_content(path: Path, wanted: str) -> DataError:
    """Return the error for content that does not match the name."""
    kind = "another format"
    content = head(path, 352)
    for name, prefix in (("gzip", b"\x1f\x8b"), ("NRRD", b"NRRD"), ("NumPy", b"\x93NUMPY"), ("MetaImage", b"ObjectT")):
        kind = name if content.startswith(prefix) else kind
    kind = "DICOM" if is_dicom(path) else kind
    kind = "uncompressed NIfTI" if content[344:347] == b"n+1" else kind
    kind = "NIfTI in two files (.hdr and .img)" if content[344:347] == b"ni1" else kind
    return DataError(f"{path}: expected {wanted} by its name, got {kind}; correct the name or get the file again.")


def cut_short(path: Path, wanted: int, held: int) -> DataError:
    """Return the error for fewer bytes than the header states."""
    return DataError(f"{path}: expected {wanted:,} bytes of voxels, got {held:,}: the file is cut short; get it again.")


def bad_field(path: Path, name: str, wanted: str, value: object) -> DataError:
    """Return the error for a field of a text header."""
    return DataError(
        f"{path}: expected the header's field `{name}` as {wanted}, got {shown(value)}. Convert the file again."
    )


def header_lines(path: Path) -> tuple[list[tuple[str, int]], bytes]:
    """Return the lines of a text header with the position behind each, and the bytes they were read from.

    A carriage return before a line's end is dropped. Lines that are not text end the list, as what follows a header is
    voxels.

    Raises:
        DataError: the file is missing or empty.
    """
    start = head(path, LONGEST_HEADER)
    lines: list[tuple[str, int]] = []
    position = 0
    while position < len(start):
        end = start.find(b"\n", position)
        line = start[position : end if end >= 0 else len(start)]
        position = end + 1 if end >= 0 else len(start)
        lines.append((line.removesuffix(b"\r").decode("latin-1"), position))
        if len(lines) > 10_000:
            break
    return lines, start


def numbers(path: Path, name: str, text: str, count: int | None = None) -> tuple[float, ...]:
    """Return the finite decimal numbers of a field, separated by white space.

    Raises:
        DataError: there is something else, or another number of them than ``count``.
    """
    words = text.split(" ") if text.isascii() and text.isprintable() else ["?"]
    words = [word for word in words if word]
    if not words or not all(_NUMBER.fullmatch(word) for word in words) or (count is not None and len(words) != count):
        raise bad_field(path, name, "finite numbers" if count is None else f"{count} finite numbers", text)
    return tuple(float(word) for word in words)


def whole_numbers(path: Path, name: str, text: str, count: int | None = None) -> tuple[int, ...]:
    """Return the whole numbers of a field; see :func:`numbers`."""
    words = text.split()
    if not all(re.fullmatch(r"-?[0-9]{1,18}", word) for word in words) or not numbers(path, name, text, count):
        raise bad_field(path, name, "whole numbers", text)
    return tuple(int(word) for word in words)


_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


def unit_columns(path: Path, vectors: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[float, ...]]:
    """Return columns scaled to length 1, and their lengths.

    Raises:
        DataError: a column has no length.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt((vectors * vectors).sum(axis=0))
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        check_spacing(lengths.tolist(), path)
    return vectors / lengths, tuple(lengths.tolist())


def finite(voxels: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    """Return the voxels, if none is NaN or infinite."""
    check_all_finite(path, int(voxels.size - np.count_nonzero(np.isfinite(voxels))), voxels.size)
    return voxels


def check_all_finite(path: Path, bad: int, total: int) -> None:
    """Check the number of voxels that are not finite.

    Raises:
        DataError: it is above 0.
    """
    if bad:
        raise DataError(
            f"{path}: expected finite values, got {bad} of {total} voxels NaN, infinite or beyond float32. Replace "
            "them, for example by the value of air, or leave the volume out."
        )


def check_spacing(spacing: Sequence[float], where: object) -> None:
    """Check spacings in mm.

    Raises:
        DataError: one is not a number, not above 0, or above :data:`MAX_SPACING`.
    """
    if not all(math.isfinite(step) and 0 < step <= MAX_SPACING for step in spacing):
        steps = " x ".join(f"{step:g}" for step in spacing)
        raise DataError(
            f"{where}: expected spacings above 0 and up to {MAX_SPACING:g} mm, got {steps} mm. Correct the header."
        )
