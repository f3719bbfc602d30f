"""Files through SimpleITK: headers and voxels, with what it hides or swallows checked."""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medmllm_plugins.data.regular_files import head as head
from medmllm_plugins.errors import DataError

MAX_VOXELS = 1024**3
"""Largest volume that is read, in voxels: 4 GiB as float32."""

MAX_SPACING = 100.0
"""Largest spacing that is believed, in mm; no scanner steps that far."""

# ITK's warnings go to the process's standard error and may quote headers.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def open_image(path: Path, reader_name: str) -> sitk.ImageFileReader:
    """Read the header of a file.

    Args:
        path: the file.
        reader_name: ITK's name of the reader, as the file's name or content decided; no other is tried.

    Returns:
        A reader that has read the header.

    Raises:
        DataError: the header cannot be read, or tells of more than :data:`MAX_VOXELS`.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(str(path))
    # ITK and GDCM throw many types. Their text may quote the header, hence `from None`.
    try:
        reader.ReadImageInformation()
    except Exception:
        raise DataError(
            f"{path}: expected a whole {reader_name.removesuffix('ImageIO')} file, found one whose header cannot be "
            "read; get the file again or convert it anew."
        ) from None
    if (count := math.prod(reader.GetSize())) > MAX_VOXELS:
        raise DataError(f"{path}: expected at most {MAX_VOXELS} voxels, found {count}; crop or resample the volume.")
    return reader


def read_pixels(reader: sitk.ImageFileReader, path: Path) -> sitk.Image:
    """Read the voxels after :func:`open_image`.

    Raises:
        DataError: they cannot be read.
    """
    try:
        image: sitk.Image = reader.Execute()
    except Exception:
        raise DataError(
            f"{path}: expected whole voxel data, found that they are cut short, damaged or compressed in a way "
            "SimpleITK cannot decode; get the file again."
        ) from None
    return image


def finite(voxels: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    """The voxels, if none is NaN or infinite.

    Raises:
        DataError: some are, with their number.
    """
    if bad := int(voxels.size - np.count_nonzero(np.isfinite(voxels))):
        raise DataError(
            f"{path}: expected finite values, found {bad} of {voxels.size} voxels NaN, infinite or beyond float32; "
            "replace them, say by the value of air, or leave the volume out."
        )
    return voxels


def check_spacing(spacing: Sequence[float], where: object) -> None:
    """Check spacings in mm.

    Raises:
        DataError: one is not a number, not above 0, or above :data:`MAX_SPACING`.
    """
    if not all(math.isfinite(step) and 0 < step <= MAX_SPACING for step in spacing):
        found = " x ".join(f"{step:g}" for step in spacing)
        raise DataError(
            f"{where}: expected spacings above 0 and up to {MAX_SPACING:g} mm, found {found} mm; correct the header."
        )
