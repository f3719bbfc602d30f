"""The score interval of a share, found by solving its defining equation and not by its formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t as student


def score_interval(
    value: float, resampled: Sequence[float], groups: float, low: float = 0.0, high: float = 1.0
) -> tuple[float, float]:
    """Return the parameters at which ``value`` is just as far off as Student's t allows at 95%."""
    share = (value - low) / (high - low)
    variance = float(np.var(np.asarray(resampled) / (high - low), ddof=0)) * groups / (groups - 1)
    size = share * (1 - share) / variance if variance > 1e-12 and 0 < share < 1 else groups
    allowed = float(student.ppf(0.975, groups - 1))

    def excess(parameter: float) -> float:
        return (share - parameter) ** 2 * size - allowed**2 * parameter * (1 - parameter)

    lower = brentq(excess, 0.0, share, xtol=1e-12) if share > 0 else 0.0
    upper = brentq(excess, share, 1.0, xtol=1e-12) if share < 1 else 1.0
    return low + (high - low) * float(lower), low + (high - low) * float(upper)
