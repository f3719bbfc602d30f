"""Intervals of the difference between two shares of the same documents, such as the accuracies of two models.

What the documents on which the two differ show is all that counts. With few of them a normal interval is too short, and
with none it has no width, so the interval is that of Tango's score test, which knows that a difference needs documents
that differ. Its sample size is the number of independent documents that would vary as much as the groups do.

Sources: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17, 1998; Korn and Graubard, "Confidence intervals for proportions with small expected
number of positive counts", 1998 (effective sample size).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    LEVEL,
    NO_VARIANCE,
    Estimate,
    effective_groups,
    resampling_factor,
    size_inflation,
)

_CRITICAL: Final = float(ndtri(1 - (1 - LEVEL) / 2))
_TOLERANCE: Final = 1e-10


def paired_difference(rows: Floats, resampled: Floats, group: Ints, *, value: float | None = None) -> Estimate:
    """Return the mean of paired differences with its 95% interval, see the head of this module.

    Args:
        rows: (n,) float64, the difference of each document: 1 where only the first is correct, -1 where only the
            second is, 0 where they agree. Documents may be weighted, with weights of mean 1.
        resampled: (B,) float64, the difference on each resample of groups; NaN where it is not defined. It may vary
            more than the documents alone, as where the probes were refitted.
        group: (n,) index of each document's group.
        value: the difference, where it is not the mean of ``rows``.

    Returns:
        The difference; its ends are NaN with one group.
    """
    difference = float(rows.mean()) if value is None else value
    defined = resampled[~np.isnan(resampled)]
    groups = effective_groups(group)
    if groups <= 1 or math.isnan(difference) or not defined.size:
        return Estimate(difference, math.nan, math.nan)
    discordant = min(1.0, max(abs(difference), float(np.abs(rows).mean())))
    variance = float(defined.var()) * resampling_factor(groups) * float(size_inflation(rows, group))
    spread = discordant - difference**2
    size = spread / variance if min(spread, variance) > NO_VARIANCE else groups
    low, high = score_interval((discordant + difference) / 2, (discordant - difference) / 2, size, _CRITICAL)
    return Estimate(difference, min(low, difference), max(high, difference))


def score_interval(first: float, second: float, size: float, critical: float) -> tuple[float, float]:
    """Return the ends of Tango's score interval of the difference of two paired proportions.

    Args:
        first: share of the pairs in which only the first is positive.
        second: share in which only the second is.
        size: number of pairs; an effective one need not be whole.
        critical: quantile of the test's statistic, such as 1.96.

    Returns:
        The lowest and the highest difference that the test does not reject.
    """
    difference = first - second

    def statistic(delta: float) -> float:
        # The share of pairs with only the second positive, at its maximum likelihood under this difference.
        linear = (2 - difference) * delta - (first + second)
        root = math.sqrt(max(0.0, linear**2 + 8 * second * delta * (1 - delta)))
        expected = max(0.0, (root - linear) / 4)
        variance = max(2 * expected + delta * (1 - delta), NO_VARIANCE)
        return (difference - delta) * math.sqrt(size / variance)

    def end(limit: float) -> float:
        """Return the difference between the observed one and the limit at which the test just rejects."""
        if abs(statistic(limit)) <= critical:
            return limit
        return float(
            brentq(lambda delta: abs(statistic(delta)) - critical, *sorted((limit, difference)), xtol=_TOLERANCE)
        )

    return end(-1.0), end(1.0)
