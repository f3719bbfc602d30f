"""Volumes through SimpleITK: NIfTI, NRRD, MetaImage, NumPy arrays and DICOM become voxels in a known orientation.

Each file is checked against its own header before SimpleITK reads it, as SimpleITK reads a truncated NIfTI file without
a word and replaces spacings it cannot use by 1 mm.
"""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medmllm_plugins.data.dicom import dicom_geometry, read_dicom
from medmllm_plugins.data.dicom_elements import starts_like_dicom
from medmllm_plugins.data.gzipped import unpacked, unpacked_head
from medmllm_plugins.data.itk import MAX_VOXELS, check_spacing, finite, head, open_image, read_pixels
from medmllm_plugins.data.volume_headers import check_header, cut_short, nifti_header, not_three, wrong_content
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
            :data:`medmllm_plugins.data.itk.MAX_VOXELS`, or values that are not finite; a spacing is not above 0 or
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
    header = nifti_header(unpacked_head(path, 540))
    if header is None or header.dtype is None or not header.scaling or reader.GetDimension() != 3:
        return None
    shape = header.shape[3:0:-1]
    if 1 in shape:
        return None
    wanted = int(header.offset) + math.prod(shape) * header.bits // 8
    content = unpacked(path)
    if len(content) < wanted:
        raise cut_short(path, wanted, len(content))
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
            more than :data:`medmllm_plugins.data.itk.MAX_VOXELS`.
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
    if starts_like_dicom(content) or name.endswith((".dcm", ".dicom", ".ima")):
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
    check_header(path, kind, whole=whole)
    reader = open_image(path, _READERS[kind])
    size = reader.GetSize()
    if not 2 <= len(size) <= 3 and any(count != 1 for count in size[3:]):
        raise not_three(path, size[::-1])
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


def _open_array(path: Path) -> npt.NDArray[np.generic]:
    """A ``.npy`` file as ``[D, H, W]``, on disk until it is used."""
    if not head(path, 8).startswith(b"\x93NUMPY"):
        raise wrong_content(path, "a NumPy array")
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
        raise not_three(path, array.shape)
    if min(array.shape[:3]) < 2:
        raise DataError(f"{path}: expected at least 2 voxels along each axis, found {list(array.shape)}.")
    if array.size > MAX_VOXELS:
        raise DataError(f"{path}: expected at most {MAX_VOXELS} voxels, found {array.size}; crop the volume.")
    return array.reshape(array.shape[:3])


def _read_array(path: Path) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(_open_array(path), dtype=np.float32)
