"""Map a range of voxel values (an intensity window) to the 256 grey levels of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import DataError, shown

Unit = Literal["HU", "any"]
"""Unit of voxel values: Hounsfield units, or any other."""

WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "lung": (-600.0, 1500.0),
        "mediastinum": (50.0, 350.0),
        "soft_tissue": (50.0, 400.0),
        "bone": (400.0, 1800.0),
        "brain": (40.0, 80.0),
    }
)
"""Centre and width in HU of the windows in common use, after the table in Radiopaedia, "Windowing (CT)"
(https://radiopaedia.org/articles/windowing-ct): lungs, mediastinum, soft tissue of the abdomen, bone, brain. Hospitals
differ a little; give numbers where it matters."""

HU_DEFAULT = (0.0, 2000.0)
"""Centre and width used for HU volumes without a window: -1000 (air) to 1000 HU, the range MedM-VL was trained with."""

PERCENTILES = (0.5, 99.5)
"""Range used for other volumes without a window, as a single bright voxel (metal, a flow artefact) would otherwise
turn the rest black."""


def parse_window(text: str) -> str | tuple[float, float]:
    """Read a window: a name of :data:`WINDOWS`, or ``"centre/width"``; a typographic minus is understood.

    Returns:
        The name, or centre and width in the volume's own unit.

    Raises:
        DataError: it is neither, or the width is not positive.
    """
    name = text.strip().lower()
    if name in WINDOWS:
        return name
    parts = name.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-").split("/")
    try:
        centre, width = (float(part) for part in parts)
    except ValueError:
        raise DataError(
            f'Expected a window to be one of {sorted(WINDOWS)} or "centre/width" such as "-600/1500", '
            f"got {shown(text)}."
        ) from None
    return _checked(centre, width)


def window_bounds(
    voxels: npt.NDArray[np.floating], window: str | tuple[float, float] | None, unit: Unit
) -> tuple[float, float]:
    """Return the values that become black and white.

    Args:
        voxels: finite values of any shape, used only without a window and if the unit is not HU. Percentiles depend on
            them, so pass a whole volume and not its slices.
        window: a name of :data:`WINDOWS`, ``"centre/width"`` as text, both as numbers in the voxels' unit, or ``None``:
            for HU :data:`HU_DEFAULT`, for others the 0.5th to 99.5th percentile of the voxels (all of their range if
            the two are equal).
        unit: the voxels' unit.

    Returns:
        Lowest and highest value shown, ``centre - width / 2`` and ``centre + width / 2``; equal if all voxels are.

    Raises:
        DataError: the window has another form, its width is not positive, or a named window meets voxels that are not
            HU.
    """
    parsed = parse_window(window) if isinstance(window, str) else window
    if parsed is None and unit != "HU":
        low, high = np.percentile(voxels, PERCENTILES)
        if low == high:  # fewer than one voxel in 200 differs
            low, high = voxels.min(), voxels.max()
        return float(low), float(high)
    if isinstance(parsed, str) and unit != "HU":
        raise DataError(
            f"Expected a volume in Hounsfield units for the window {parsed!r}, got one of another or unknown unit; "
            'give the window as "centre/width" in the volume\'s own values, or declare the unit HU if it is CT.'
        )
    centre, width = HU_DEFAULT if parsed is None else WINDOWS[parsed] if isinstance(parsed, str) else _checked(*parsed)
    return centre - width / 2, centre + width / 2


def to_grey(voxels: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map values to grey levels of the same shape: linear, 0 up to ``low``, 255 from ``high`` on; all 0 if equal."""
    if high <= low:
        return np.zeros(voxels.shape, dtype=np.uint8)
    # In double precision, as the difference of two float32 values may be beyond float32.
    inside: npt.NDArray[np.float64] = np.clip(voxels.astype(np.float64), low, high)
    return np.rint((inside - low) / (high - low) * 255.0).astype(np.uint8)


def _checked(centre: float, width: float) -> tuple[float, float]:
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise DataError(f"Expected a window with a finite centre and a width above 0, got {centre:g}/{width:g}.")
    return float(centre), float(width)
