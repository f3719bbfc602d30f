"""Check that voxels are finite and spacings plausible, for all volume formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import DataError

MAX_SPACING = 100.0
"""Largest plausible spacing, in mm."""


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
