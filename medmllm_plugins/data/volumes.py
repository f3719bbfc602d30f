"""Volumes through SimpleITK: NIfTI, NRRD, MetaImage, NumPy arrays and DICOM become voxels in a known orientation.

Each file is checked against its own header before SimpleITK reads it, as SimpleITK reads a truncated NIfTI file without
a word and replaces spacings it cannot use by 1 mm.
"""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import gzip
import itertools
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medmllm_plugins.data.dicom import (
    MAX_VOXELS,
    check_spacing,
    dicom_geometry,
    finite,
    head,
    is_dicom,
    open_image,
    read_dicom,
    read_pixels,
)
from medmllm_plugins.data.windows import Unit
from medmllm_plugins.errors import DataError, shown

ORIENTATIONS = frozenset(
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*axes)
)
"""The 48 orientations; see :class:`Volume` for how one is read."""

_KINDS = {
    ".npy": "numpy",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}
_READERS = {"nifti": "NiftiImageIO", "nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}
# Bytes a voxel, by MetaImage's names.
_META_BYTES = {
    **dict.fromkeys(("CHAR", "UCHAR"), 1),
    **dict.fromkeys(("SHORT", "USHORT"), 2),
    **dict.fromkeys(("INT", "UINT", "LONG", "ULONG", "FLOAT"), 4),
    **dict.fromkeys(("LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
}
_NRRD_SPACES = ("right-anterior-sup", "left-anterior-sup", "left-posterior-sup", "ras", "las", "lps")
_BLANK = (b"\n\n", b"\r\n\r\n")
# Read at once while a compressed file is checked.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Voxels with their size and the way they stand in the patient.

    Axis 0 of the array is the slice axis, axis 1 the rows of a slice, axis 2 its columns. ``orientation`` names, for x
    (axis 2), y (axis 1) and z (axis 0) in this order, the side of the patient towards which the index **grows**: with
    ``"RAS"``, ``voxels[z, y, x]`` moves to the patient's right with x, to the front with y and to the head with z, so
    that ``voxels[0, 0, 0]`` is the left, posterior, inferior corner. This is how NIfTI, nibabel and ITK's
    ``DICOMOrient`` use the letters; ITK's older ``OrientImageFilter`` names the side that an axis comes *from*. A DICOM
    slice as stored is ``"LPS"``.

    Attributes:
        voxels: ``[D, H, W]`` float32, finite.
        spacing: distances of voxel centres in mm along z, y and x, the order of the array's axes.
        orientation: one of :data:`ORIENTATIONS`. Of an oblique scan, the nearest axes: voxels are never resampled to a
            straight grid.
        unit: ``"HU"`` or ``"any"``.

    Raises:
        DataError: the shape, type, spacing, orientation or unit is none of these.
    """

    voxels: npt.NDArray[np.float32]
    spacing: tuple[float, float, float]
    orientation: str
    unit: Unit

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.dtype != np.float32 or 0 in self.voxels.shape:
            raise DataError(
                "Expected voxels as a float32 array [D, H, W], "
                f"found {self.voxels.dtype} {list(self.voxels.shape)}; convert them."
            )
        if len(self.spacing) != 3:
            raise DataError(f"Expected spacings along z, y and x, found {len(self.spacing)} numbers.")
        check_spacing(self.spacing, "volume")
        _check_orientation(self.orientation)
        _check_unit(self.unit)


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What a header tells.

    Attributes:
        kind: ``"nifti"``, ``"nrrd"``, ``"metaimage"``, ``"numpy"`` or ``"dicom"``.
        shape: voxels along z, y and x as stored; :func:`read_volume` may put the axes in another order.
        spacing: mm along z, y and x as stored; of NumPy arrays 1, as they state none.
        orientation: as stored, see :class:`Volume`; ``""`` where the file states none.
    """

    kind: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str


def read_volume(path: Path, *, orientation: str = "RAS", unit: Unit | None = None) -> Volume:
    """Read a volume in the orientation asked for.

    Axes are swapped and flipped, so no value changes; an oblique scan gets the nearest axes. Rescale slope and
    intercept of DICOM and NIfTI are applied (by SimpleITK). Integers above 16 777 216 are rounded to float32.

    - ``.npy``: ``[D, H, W]`` or ``[D, H, W, 1]``. An array states neither spacing nor orientation: the spacing is taken
      to be 1 mm and the array to stand as ``orientation`` says, so nothing is flipped.
    - ``.nii``, ``.nii.gz``: NIfTI-1 and NIfTI-2 in one file. The sform goes first, as in SimpleITK.
    - ``.nrrd``, ``.nhdr``; ``.mha``, ``.mhd``. A MetaImage without TransformMatrix stands as LPS.
    - ``.dcm``, or any file with the DICOM prefix, and folders: see :func:`medmllm_plugins.data.dicom.read_dicom`.

    One slice is a volume only in a DICOM file of one frame or a two-dimensional NIfTI, NRRD or MetaImage. It keeps the
    orientation in which it is stored (LPS where the file cannot say), as its slice axis has to stay axis 0.

    Args:
        path: a file or a folder.
        orientation: one of :data:`ORIENTATIONS`.
        unit: what the voxels mean, for files that do not say: all but DICOM, which are ``"any"`` unless told. A given
            unit goes before what DICOM says.

    Returns:
        The volume.

    Raises:
        DataError: there is nothing at ``path``, or of a kind not listed; the content is not what the name says, cut
            short or damaged; the volume is not three-dimensional, has several values a voxel, one slice, more than
            :data:`medmllm_plugins.data.dicom.MAX_VOXELS`, or values that are not finite; a spacing is not above 0 or
            above 100 mm; a NIfTI or NRRD file does not state its orientation; axes are not perpendicular;
            ``orientation`` or ``unit`` does not exist.
    """
    _check_orientation(orientation)
    if unit is not None:
        _check_unit(unit)
    kind = _kind(path)
    if kind == "numpy":
        return Volume(finite(_read_array(path), path), (1.0, 1.0, 1.0), orientation, unit or "any")
    if kind == "dicom":
        scan = read_dicom(path)
        return _volume(path, scan.image, orientation, unit or scan.unit, scan.single)
    if path.name.lower().endswith(".gz") and (found := _packed_volume(path, orientation, unit or "any")) is not None:
        return found
    image = read_pixels(_open(path, kind, whole=True), path)
    flat = image.GetDimension() == 2
    if flat:
        image = sitk.JoinSeries([image])
    elif image.GetDimension() > 3:
        size = image.GetSize()
        image = sitk.Extract(image, (*size[:3], *(0 for _ in size[3:])), (0,) * len(size))
    return _volume(path, image, orientation, unit or "any", flat)


def volume_facts(path: Path) -> VolumeFacts:
    """Read size and spacing from a header; of a DICOM folder from the headers of its files.

    Args:
        path: see :func:`read_volume`.

    Returns:
        The facts.

    Raises:
        DataError: see :func:`read_volume`; damaged or missing voxels may go unnoticed.
    """
    kind = _kind(path)
    if kind == "numpy":
        depth, height, width = _open_array(path).shape[:3]
        return VolumeFacts(kind, (depth, height, width), (1.0, 1.0, 1.0), "")
    if kind == "dicom":
        found = dicom_geometry(path)
        size, spacing, direction = found.size, found.spacing, found.direction
    else:
        reader = _open(path, kind, whole=False)
        size, spacing = (*reader.GetSize(), 1)[:3], (*reader.GetSpacing(), 1.0)[:3]
        flat = reader.GetDimension() == 2
        direction = (
            (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0) if flat else tuple(_matrix(reader.GetDirection()).ravel())
        )
    return VolumeFacts(kind, (size[2], size[1], size[0]), (spacing[2], spacing[1], spacing[0]), _stands(direction))


def _packed_volume(path: Path, orientation: str, unit: Unit) -> Volume | None:
    """A three-dimensional ``.nii.gz`` of plain numbers, unpacked once; ``None`` for others, which SimpleITK reads.

    SimpleITK does not compare the check sum, so that a file would be unpacked a second time for that; and it lets no
    other thread run meanwhile. How the axes stand comes from SimpleITK all the same.
    """
    reader = _open(path, "nifti", whole=False)
    header = _nifti_header(_unpacked_head(path, 540))
    if header is None or header.dtype is None or not header.scaling or reader.GetDimension() != 3:
        return None
    shape = header.shape[3:0:-1]
    if 1 in shape:
        return None
    wanted = int(header.offset) + math.prod(shape) * header.bits // 8
    content = _unpacked(path)
    if len(content) < wanted:
        raise _cut_short(path, wanted, len(content))
    raw = np.frombuffer(content, np.dtype(header.dtype), math.prod(shape), int(header.offset)).reshape(shape)
    # For x, y and z of the result: the axis that runs that way in the file, or against it.
    stands = _stands(reader.GetDirection())
    sources = [next(axis for axis, side in enumerate(stands) if side in _SIDES[wish]) for wish in orientation]
    turned = [2 - at for at, source in enumerate(sources) if stands[source] != orientation[at]]
    placed = np.flip(raw.transpose([2 - sources[2 - axis] for axis in range(3)]), tuple(turned))
    slope, intercept = header.scaling
    voxels: npt.NDArray[np.float32] = np.empty(placed.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if (slope, intercept) == (1.0, 0.0):
            voxels[...] = placed
        else:
            for at, layer in enumerate(placed):
                voxels[at] = layer * slope + intercept
    spacing = reader.GetSpacing()
    steps = (spacing[sources[2]], spacing[sources[1]], spacing[sources[0]])
    whole = raw.dtype.kind in "iu" and (slope, intercept) == (1.0, 0.0)
    return Volume(voxels if whole else finite(voxels, path), steps, orientation, unit)


_SIDES = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
"""A side of the patient, to the two ends of its axis."""


def packed_nifti_sum(path: Path) -> str:
    """CRC-32 and length that a ``.nii.gz`` file states of its content (RFC 1952), checked against the header.

    A file cut short states chance numbers, which this finds without unpacking it all; other damage is found when the
    volume is read.

    Returns:
        The sum and length as 16 hexadecimal digits.

    Raises:
        DataError: see :func:`volume_facts`; or the length does not go with the header.
    """
    header = _nifti_header(_unpacked_head(path, 540))
    if header is None:
        raise _wrong_content(path, "a NIfTI file in one piece (n+1 or n+2)")
    wanted = int(header.offset) + math.prod(header.shape[1 : header.shape[0] + 1]) * header.bits // 8
    with path.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        end = opened.read(8)
    # The length is stated modulo 4 GiB; some writers leave a few bytes behind the voxels.
    if (int.from_bytes(end[4:], "little") - wanted) % (1 << 32) >= _CHUNK:
        raise _damaged_gzip(path)
    return end.hex()


def resample(volume: Volume, *, spacing: Sequence[float] | None = None, shape: Sequence[int] | None = None) -> Volume:
    """Resample linearly to another spacing or shape; give one of the two.

    The field of view stays: with ``shape`` exactly, with ``spacing`` to the nearest voxel and about the same centre.
    Values between voxel centres are interpolated, and are exact where the volume is linear; values beyond the outermost
    centres repeat these. Nothing is smoothed, so strongly coarser grids alias.

    Args:
        volume: the volume.
        spacing: mm along z, y and x.
        shape: voxels along z, y and x.

    Returns:
        A new volume of the same orientation and unit.

    Raises:
        DataError: both or neither are given, there are not three, a value is not above 0, or the result would have
            more than :data:`medmllm_plugins.data.dicom.MAX_VOXELS`.
    """
    if (spacing is None) == (shape is None):
        raise DataError("Expected either a spacing or a shape to resample to, found both or neither.")
    old = volume.voxels.shape
    extent = [count * step for count, step in zip(old, volume.spacing, strict=True)]
    if spacing is not None:
        steps = _three(spacing, "spacings")
        check_spacing(steps, "resample")
        counts = [max(1, round(length / step)) for length, step in zip(extent, steps, strict=True)]
    else:
        counts = [int(count) for count in _three(shape or (), "sizes")]
        if min(counts) < 1:
            raise DataError(f"Expected sizes of at least 1 voxel, found {counts}.")
        steps = [length / count for length, count in zip(extent, counts, strict=True)]
        check_spacing(steps, "resample")
    if math.prod(counts) > MAX_VOXELS:
        raise DataError(f"Expected at most {MAX_VOXELS} voxels after resampling, found {math.prod(counts)}.")
    # Both grids have their middle at the same place.
    starts = [
        ((old_count - 1) * old_step - (count - 1) * step) / 2
        for old_count, old_step, count, step in zip(old, volume.spacing, counts, steps, strict=True)
    ]
    image = sitk.GetImageFromArray(volume.voxels)
    image.SetSpacing(volume.spacing[::-1])
    grid = sitk.ResampleImageFilter()
    grid.SetSize(counts[::-1])
    grid.SetOutputSpacing(steps[::-1])
    grid.SetOutputOrigin(starts[::-1])
    grid.SetInterpolator(sitk.sitkLinear)
    grid.SetUseNearestNeighborExtrapolator(True)
    voxels = sitk.GetArrayFromImage(grid.Execute(image))
    return Volume(voxels, (steps[0], steps[1], steps[2]), volume.orientation, volume.unit)


def _kind(path: Path) -> str:
    """The kind of a file by its name, and for names that say nothing by the DICOM prefix."""
    if path.is_dir():
        return "dicom"
    content = head(path, 132)
    name = path.name.lower()
    for ending, kind in _KINDS.items():
        if name.endswith(ending):
            return kind
    if content[128:] == b"DICM" or name.endswith((".dcm", ".dicom", ".ima")):
        return "dicom"
    known = ", ".join(_KINDS)
    raise DataError(
        f"{path}: expected a volume as {known}, DICOM file or folder, found {path.suffix or 'no ending'} "
        "without the DICOM prefix; convert it, or correct the name."
    )


def _check_orientation(orientation: str) -> None:
    if orientation not in ORIENTATIONS:
        raise DataError(
            "Expected an orientation of three letters, one each of L or R, A or P and S or I, such as RAS or LPS, "
            f"found {shown(orientation)}."
        )


def _check_unit(unit: str) -> None:
    if unit not in ("HU", "any"):
        raise DataError(f'Expected the unit to be "HU" or "any", found {shown(unit)}.')


def _three(values: Sequence[float], what: str) -> list[float]:
    if len(values) != 3:
        raise DataError(f"Expected three {what}, along z, y and x, found {len(values)}.")
    return [float(value) for value in values]


def _volume(path: Path, image: sitk.Image, orientation: str, unit: Unit, single: bool) -> Volume:
    """A three-dimensional image in the orientation asked for."""
    if single:
        orientation = _stands(image.GetDirection())
    elif 1 in image.GetSize():
        raise DataError(
            f"{path}: expected at least 2 voxels along each axis, found {list(image.GetSize()[::-1])}; a single slice "
            "is a volume only as a two-dimensional image or a DICOM file."
        )
    else:
        image = sitk.DICOMOrient(image, orientation)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{path}: expected one value a voxel, found {image.GetNumberOfComponentsPerPixel()}.")
    stored = sitk.GetArrayViewFromImage(image)
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused
        voxels = stored.astype(np.float32)
    x, y, z = image.GetSpacing()
    return Volume(voxels if stored.dtype.kind in "iu" else finite(voxels, path), (z, y, x), orientation, unit)


def _stands(direction: Sequence[float]) -> str:
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(part) for part in direction]))


def _matrix(direction: Sequence[float]) -> npt.NDArray[np.float64]:
    """The directions of the first three axes, as columns."""
    dimensions = math.isqrt(len(direction))
    return np.array(direction, dtype=np.float64).reshape(dimensions, dimensions)[:3, :3]


def _open(path: Path, kind: str, *, whole: bool) -> sitk.ImageFileReader:
    """Read and check a header; with ``whole`` also that the file holds all the voxels it states."""
    _HEADERS[kind](path, whole)
    reader = open_image(path, _READERS[kind])
    size = reader.GetSize()
    if not 2 <= len(size) <= 3 and any(count != 1 for count in size[3:]):
        raise _not_three(path, size[::-1])
    if reader.GetNumberOfComponents() != 1:
        raise DataError(
            f"{path}: expected one value a voxel, found {reader.GetNumberOfComponents()} "
            "(colours, vectors or complex numbers); extract one channel."
        )
    check_spacing(reader.GetSpacing()[:3], path)
    axes = _matrix(reader.GetDirection())
    if not np.abs(axes.T @ axes - np.eye(len(axes))).max() <= 1e-2:
        raise DataError(f"{path}: expected perpendicular axes, found sheared ones; resample the volume.")
    return reader


def _not_three(path: Path, shape: Sequence[int]) -> DataError:
    return DataError(
        f"{path}: expected a volume of three dimensions [D, H, W], found {len(shape)}: {list(shape)}; "
        "save one volume a file."
    )


def _wrong_content(path: Path, wanted: str) -> DataError:
    found = "another format"
    content = head(path, 352)
    for name, prefix in (("gzip", b"\x1f\x8b"), ("NRRD", b"NRRD"), ("NumPy", b"\x93NUMPY"), ("MetaImage", b"ObjectT")):
        found = name if content.startswith(prefix) else found
    found = "DICOM" if is_dicom(path) else found
    found = "uncompressed NIfTI" if content[344:347] in (b"n+1", b"ni1") else found
    return DataError(f"{path}: expected {wanted} by its name, found {found}; correct the name or get the file again.")


def _open_array(path: Path) -> npt.NDArray[np.generic]:
    """A ``.npy`` file as ``[D, H, W]``, on disk until it is used."""
    if not head(path, 8).startswith(b"\x93NUMPY"):
        raise _wrong_content(path, "a NumPy array")
    # Damaged headers are met with ValueError, SyntaxError, EOFError and others.
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:
        raise DataError(
            f"{path}: expected a whole NumPy array of numbers, found one that cannot be read; save it anew with "
            "numpy.save."
        ) from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected real numbers, found {array.dtype}; convert the array.")
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 1)):
        raise _not_three(path, array.shape)
    if min(array.shape[:3]) < 2:
        raise DataError(f"{path}: expected at least 2 voxels along each axis, found {list(array.shape)}.")
    if array.size > MAX_VOXELS:
        raise DataError(f"{path}: expected at most {MAX_VOXELS} voxels, found {array.size}; crop the volume.")
    return array.reshape(array.shape[:3])


def _read_array(path: Path) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(_open_array(path), dtype=np.float32)


def _check_nifti(path: Path, whole: bool) -> None:
    """Check a NIfTI header and how much follows it (NIfTI-1 and NIfTI-2, nifti.nimh.nih.gov)."""
    packed = path.name.lower().endswith(".gz")
    if packed and head(path, 2) != b"\x1f\x8b":
        raise _wrong_content(path, "a compressed NIfTI file")
    start = _unpacked_head(path, 540) if packed else head(path, 540)
    header = _nifti_header(start)
    if header is None:
        raise _wrong_content(path, "a NIfTI file in one piece (n+1 or n+2)")
    dimensions = header.shape[0]
    sizes = header.shape[1 : dimensions + 1]
    if not 1 <= dimensions <= 7 or min(sizes) < 1:
        raise DataError(f"{path}: expected sizes of at least 1 along 2 or 3 axes, found a damaged NIfTI header.")
    if dimensions < 2 or any(count != 1 for count in sizes[3:]):
        raise _not_three(path, sizes[::-1])
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
        found = _unpacked_size(path) if packed else path.stat().st_size
        if found < wanted:
            raise _cut_short(path, wanted, found)
        if header.floats is not None:
            _check_stored_floats(path, header, math.prod(sizes), packed)


def _check_stored_floats(path: Path, header: _Nifti, count: int, packed: bool) -> None:
    """Look for NaN and infinity in the file itself, as SimpleITK reads both as 0."""
    dtype = np.dtype(header.floats)
    with gzip.open(path) if packed else path.open("rb") as opened:
        opened.seek(int(header.offset))
        left, bad = count, 0
        while left:
            values = np.frombuffer(opened.read(min(left * dtype.itemsize, _CHUNK)), dtype)
            bad += int(values.size - np.count_nonzero(np.isfinite(values)))
            left -= values.size
    if bad:
        raise DataError(
            f"{path}: expected finite values, found {bad} of {count} voxels NaN or infinite; replace them, say by the "
            "value of air, or leave the volume out."
        )


@dataclass(frozen=True, slots=True)
class _Nifti:
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


def _nifti_header(start: bytes) -> _Nifti | None:
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
        return _Nifti(shape, spacing, bits, offset, placed, floats, kind and f"{order}{kind}", scaling)
    return None


def _check_nrrd(path: Path, whole: bool) -> None:
    """Check an NRRD header (teem.sourceforge.net/nrrd/format.html) and, of packed data, the check sum."""
    with path.open("rb") as opened:
        start = opened.read(1 << 16)
    if not start.startswith(b"NRRD"):
        raise _wrong_content(path, "an NRRD file")
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
            _unpacked_size(path, offset=min(at + len(end) for end in _BLANK if (at := start.find(end)) >= 0))
        elif other and (path.parent / other).is_file():
            _unpacked_size(path.parent / other)


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
            raise _wrong_content(path, "a MetaImage")
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
        raise _not_three(path, sizes[::-1])
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
            raise _cut_short(data, int(size), found)


_HEADERS: dict[str, Callable[[Path, bool], None]] = {
    "nifti": _check_nifti,
    "nrrd": _check_nrrd,
    "metaimage": _check_metaimage,
}


def _cut_short(path: Path, wanted: int, found: int) -> DataError:
    return DataError(f"{path}: expected {wanted} bytes, found {found}: the file is cut short; get it again.")


def _unpacked_head(path: Path, count: int) -> bytes:
    try:
        with gzip.open(path) as opened:
            return opened.read(count)
    except (OSError, EOFError, zlib.error):
        raise _damaged_gzip(path) from None


def _unpacked(path: Path) -> bytes:
    """All that is packed, its check sum compared."""
    parts = []
    try:
        left = path.read_bytes()
        while left:  # a file may be several packed ones, as parallel packers write it
            unpacker = zlib.decompressobj(wbits=31)  # gzip, which zlib checks; in one call, so that other threads run
            parts.append(unpacker.decompress(left))
            if not unpacker.eof:
                raise _damaged_gzip(path)
            left = unpacker.unused_data.lstrip(b"\0")
    except (OSError, zlib.error):
        raise _damaged_gzip(path) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpacked_size(path: Path, offset: int = 0) -> int:
    """Length of what is packed, having compared its check sum, which SimpleITK leaves out."""
    total = 0
    try:
        with path.open("rb") as opened:
            opened.seek(offset)
            with gzip.GzipFile(fileobj=opened) as unpacked:
                while chunk := unpacked.read(_CHUNK):
                    total += len(chunk)
    except (OSError, EOFError, zlib.error):
        raise _damaged_gzip(path) from None
    return total


def _damaged_gzip(path: Path) -> DataError:
    return DataError(f"{path}: expected whole gzip data, found that they are damaged or cut short; get the file again.")
