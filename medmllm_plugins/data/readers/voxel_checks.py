"""Checks that readers of every volume format share: the first bytes, finite values, believable spacings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import DataError

MAX_SPACING = 100.0
"""Largest spacing that is believed, in mm; no scanner steps that far."""


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
