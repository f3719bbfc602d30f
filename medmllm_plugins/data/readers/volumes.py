"""Read NIfTI, NRRD, MetaImage, NumPy and DICOM volumes in a known orientation.

Headers are checked against the length of the data, and data decompressed no further than the header states. SimpleITK
only names directions: it reads truncated or altered files without an error.
"""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medmllm_plugins.data.readers.dicom import Geometry, dicom_geometry, read_dicom
from medmllm_plugins.data.readers.dicom_prefix import starts_like_dicom
from medmllm_plugins.data.readers.intensity_windows import Unit
from medmllm_plugins.data.readers.metaimage import read_metaimage_header
from medmllm_plugins.data.readers.nifti import read_nifti_header
from medmllm_plugins.data.readers.nrrd import read_nrrd_header
from medmllm_plugins.data.readers.numpy_files import MAGIC, array_file_header
from medmllm_plugins.data.readers.volume_headers import (
    DataLocation,
    VolumeHeader,
    check_header,
    check_spacing,
    finite,
    not_three,
    wrong_content,
)
from medmllm_plugins.data.readers.voxels import read_voxels
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import head

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


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Voxels with their spacing and orientation in the patient.

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
        DataError: the shape, type, spacing, orientation or unit is another.
    """

    voxels: npt.NDArray[np.float32]
    spacing: tuple[float, float, float]
    orientation: str
    unit: Unit

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.dtype != np.float32 or 0 in self.voxels.shape:
            raise DataError(
                "Expected voxels as a float32 array [D, H, W], "
                f"got {self.voxels.dtype} {list(self.voxels.shape)}; convert them."
            )
        if len(self.spacing) != 3:
            raise DataError(f"Expected spacings along z, y and x, got {len(self.spacing)} numbers.")
        check_spacing(self.spacing, "volume")
        _check_orientation(self.orientation)
        _check_unit(self.unit)


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """Size, spacing and orientation from a header.

    Attributes:
        shape: voxels along z, y and x as stored; :func:`read_volume` may put the axes in another order.
        spacing: mm along z, y and x as stored; of NumPy arrays 1, as they state none.
        orientation: as stored, see :class:`Volume`; ``""`` where the file states none.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str


def read_volume(path: Path, *, orientation: str = "RAS", unit: Unit | None = None) -> Volume:
    """Read a volume in the orientation asked for.

    Axes are swapped and flipped, so no value changes; an oblique scan gets the nearest axes. Rescale slope and
    intercept of DICOM and NIfTI are applied. Integers above 16 777 216 are rounded to float32.

    - ``.npy``: ``[D, H, W]`` or ``[D, H, W, 1]``. An array states neither spacing nor orientation: the spacing is taken
      to be 1 mm and the array to stand as ``orientation`` says, so nothing is flipped.
    - ``.nii``, ``.nii.gz``: NIfTI-1 and NIfTI-2 in one file; which of sform and qform counts is
      decided as in SimpleITK, see :func:`medmllm_plugins.data.readers.nifti.read_nifti_header`.
    - ``.nrrd``, ``.nhdr``; ``.mha``, ``.mhd``; a data file that a header names has to lie below the header's folder. A
      MetaImage without TransformMatrix is read as LPS.
    - ``.dcm``, or any file with the DICOM prefix, and folders: see  ``read_dicom``.

    One slice is a volume only in a DICOM file of one frame or a two-dimensional NIfTI, NRRD or MetaImage. It keeps the
    orientation in which it is stored (LPS where the file cannot say), as its slice axis has to stay axis 0.

    ``unit`` says what the voxels mean; without it all but DICOM are ``"any"``. It goes before what DICOM says.

    Raises:
        DataError: there is nothing at ``path``, or of a kind not listed; the content is not what the name says, cut
            short or damaged; the volume is not three-dimensional, has several values a voxel, one slice, a size above
            the limit of :mod:`medmllm_plugins.data.readers.decode_limit`, or values that are not finite; a spacing is
            not above 0 or above 100 mm; a NIfTI or NRRD file does not state its orientation; axes are not
            perpendicular; a data file does not lie below its header's folder; ``orientation`` or ``unit`` does not
            exist.
    """
    _check_orientation(orientation)
    if unit is not None:
        _check_unit(unit)
    kind = _kind(path)
    header: Geometry | VolumeHeader
    if kind == "dicom":
        scan, header, dicom_unit = read_dicom(path)
        unit = unit or dicom_unit
    else:
        header = _HEADERS[kind](path)
    _check_thickness(path, header)
    stored = orientation if header.direction is None else _orientation(header.direction)
    orientation = stored if header.flat else orientation
    # For x, y and z of the result: the axis that runs that way in the file, or against it.
    sources = [next(axis for axis, side in enumerate(stored) if side in _SIDES[end]) for end in orientation]
    flips = [2 - at for at, source in enumerate(sources) if stored[source] != orientation[at]]
    axes = [2 - sources[2 - axis] for axis in range(3)]
    if isinstance(header, VolumeHeader):
        voxels = read_voxels(header, axes, flips)
    else:
        voxels = finite(np.ascontiguousarray(np.flip(scan.transpose(axes), tuple(flips))), path)
    spacing = (header.spacing[axes[0]], header.spacing[axes[1]], header.spacing[axes[2]])
    return Volume(voxels, spacing, orientation, unit or "any")


def volume_facts(path: Path) -> VolumeFacts:
    """Read size and spacing from a header; of a DICOM folder from the headers of its files.

    Raises:
        DataError: see :func:`read_volume`; damaged or missing voxels may go unnoticed.
    """
    kind = _kind(path)
    header = dicom_geometry(path) if kind == "dicom" else _HEADERS[kind](path)
    if kind == "numpy":
        _check_thickness(path, header)
    stored = "" if header.direction is None else _orientation(header.direction)
    return VolumeFacts(header.shape, header.spacing, stored)


def _check_thickness(path: Path, header: Geometry | VolumeHeader) -> None:
    if not header.flat and 1 in header.shape:
        raise DataError(
            f"{path}: expected at least 2 voxels along each axis, got {list(header.shape)}; a single slice is a volume "
            "only as a two-dimensional image or a DICOM file."
        )


_SIDES = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
"""Both ends of the axis that a side of the patient is on."""


def _read_array_header(path: Path) -> VolumeHeader:
    """Read and check the header of a ``.npy`` file with a volume ``[D, H, W]`` or ``[D, H, W, 1]``.

    Raises:
        DataError: the file is damaged or holds no such array.
    """
    if not head(path, 8).startswith(MAGIC):
        raise wrong_content(path, "a NumPy array")
    array = array_file_header(path)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{path}: expected real numbers of up to 64 bits, got {shown(str(array.dtype))}; convert them.")
    shape = array.shape
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise not_three(path, shape)
    if min(shape) < 1:
        raise DataError(f"{path}: expected at least 2 voxels along each axis, got {shown(list(shape))}.")
    return check_header(
        VolumeHeader(
            path=path,
            shape=(shape[0], shape[1], shape[2]),
            spacing=(1.0, 1.0, 1.0),
            direction=None,
            flat=False,
            dtype=array.dtype,
            data=DataLocation(path, array.length),
            reversed_axes=array.fortran,
        )
    )


_HEADERS: Mapping[str, Callable[[Path], VolumeHeader]] = {
    "nifti": read_nifti_header,
    "nrrd": read_nrrd_header,
    "metaimage": read_metaimage_header,
    "numpy": _read_array_header,
}


def _kind(path: Path) -> str:
    """Return the kind of a file by its name, and for unknown names by the DICOM prefix."""
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
        f"{path}: expected a volume as {known}, DICOM file or folder, got {path.suffix or 'no ending'} "
        "without the DICOM prefix; convert it, or correct the name."
    )


def _check_orientation(orientation: str) -> None:
    if orientation not in ORIENTATIONS:
        raise DataError(
            "Expected an orientation of three letters, one each of L or R, A or P and S or I, such as RAS or LPS, "
            f"got {shown(orientation)}."
        )


def _check_unit(unit: str) -> None:
    if unit not in ("HU", "any"):
        raise DataError(f'Expected the unit to be "HU" or "any", got {shown(unit)}.')


def _orientation(direction: Sequence[float]) -> str:
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(part) for part in direction]))
