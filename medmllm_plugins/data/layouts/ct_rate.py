"""Layout of CT-RATE (Hamamci et al., arXiv:2403.17834): chest CT volumes whose files may not state their own values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.data.layouts.user_table import Table
from medmllm_plugins.data.readers.file_facts import FileFacts
from medmllm_plugins.data.readers.nifti import packed_nifti_sum
from medmllm_plugins.data.readers.volumes import Volume, read_volume, volume_facts
from medmllm_plugins.errors import DataError, shown

FIXED = "_fixed"
"""Ending of the folders whose files hold Hounsfield units and their spacing, as other NIfTI files do."""
METADATA = ("dataset/metadata/validation_metadata.csv", "metadata/validation_metadata.csv")
AIR = -500.0
"""Every chest CT shows air, about -1000 HU; a volume whose smallest value lies above this is not in HU."""

_COLUMNS = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the metadata state of a volume: what turns its values into HU, and mm along z, y and x."""

    slope: float
    intercept: float
    spacing: tuple[float, float, float]


class CTRate(Table):
    """``dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz`` and ``dataset/multi_abnormality_labels/``.

    In the older folder ``valid`` neither the values nor the spacing in the files are right: slope,
    intercept and spacing come from ``metadata/validation_metadata.csv``. Where both folders are there, ``valid_fixed``
    is read.

    The set takes hundreds of gigabytes, so that before an evaluation headers and lengths are checked, with the check
    sum that each file states of its content; the content is compared with it when a volume is read.
    """

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Read a volume in Hounsfield units.

        Raises:
            DataError: see :func:`medmllm_plugins.data.readers.volumes.read_volume`; the metadata do not state the
                volume; or its values cannot be Hounsfield units.
        """
        path = folder / document.image
        volume = read_volume(path, unit="HU")
        if not _fixed(path):
            stated = _metadata(folder)[path.name]
            voxels = (volume.voxels * np.float32(stated.slope) + np.float32(stated.intercept)).astype(np.float32)
            volume = Volume(voxels, stated.spacing, volume.orientation, "HU")
        if float(volume.voxels.min()) > AIR:
            raise DataError(
                f"{path}: expected a chest CT in Hounsfield units, with air near -1000, got "
                f"{volume.voxels.min():g} as smallest value; get the file and its metadata again."
            )
        return volume

    def check_file(self, spec: DatasetSpec, folder: Path, path: Path) -> FileFacts:
        """Check header and length of a volume, and in the older folder its metadata."""
        facts = volume_facts(path)
        if not _fixed(path) and path.name not in _metadata(folder):
            raise DataError(f"{path}: expected a row in validation_metadata.csv with slope and spacing, got none.")
        return FileFacts(f"{packed_nifti_sum(path)}{facts.shape}")

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return the check sum that the file states of its content."""
        return packed_nifti_sum(folder / document.image)


def _fixed(path: Path) -> bool:
    return any(parent.name.endswith(FIXED) for parent in path.parents)


def _metadata(folder: Path) -> dict[str, _Stated]:
    path = next((folder / name for name in METADATA if (folder / name).is_file()), folder / METADATA[0])
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: expected slope, intercept and spacing of the volumes in valid/, got one that cannot be read "
            f"({error.strerror}); get it, or use valid_fixed/."
        ) from error
    return _read_metadata(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _read_metadata(path: Path, size: int, modified: int) -> dict[str, _Stated]:
    faults = Faults(path.name, str(path))
    stated_of = {}
    for line, row in read_rows(path, _COLUMNS, faults):
        try:
            # "[0.74, 0.74]"; rows and columns are equally far apart.
            planar = [float(part) for part in row["XYSpacing"].strip("[]()").split(",")]
            spacing = (float(row["ZSpacing"]), planar[-1], planar[0])
            stated = _Stated(float(row["RescaleSlope"]), float(row["RescaleIntercept"]), spacing)
        except ValueError:
            faults.add(f"{path}, line {line}: expected numbers, got {shown(dict(row))}")
            continue
        if not all(map(math.isfinite, (stated.slope, stated.intercept, *spacing))) or stated.slope == 0:
            faults.add(f"{path}, line {line}: expected finite numbers and a slope, got {shown(dict(row))}")
            continue
        stated_of[row["VolumeName"]] = stated
    faults.stop()
    return stated_of
