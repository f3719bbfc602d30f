"""Percentile intervals from the cluster bootstrap.

Documents of one group (a patient, a lesion, a source figure) are not independent, so groups are drawn with replacement
and each brings all of its documents. Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13 (percentile interval); Field and Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69, 2007 (clusters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints

LEVEL = 0.95
RESAMPLES = 2000
_CELLS = 200_000
"""Numbers in one array of resampled weights, 1.6 MB: they stay near the processor, which is fastest."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric with its 95 % interval.

    Attributes:
        value: the metric on all documents; NaN where it is not defined.
        low: lower end of the percentile interval; NaN where the data have fewer than two groups to resample.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """The three numbers, ``None`` in place of NaN."""
        return {"value": number(self.value), "low": number(self.low), "high": number(self.high)}

    def percent(self) -> str:
        """As people read it: the value and its interval, in percent."""
        if math.isnan(self.low):
            return f"{self.value:.1%} (no interval: one group)"
        return f"{self.value:.1%} (95 % CI {self.low:.1%} to {self.high:.1%})"


def number(value: float) -> float | None:
    """``value`` as JSON can hold it: ``None`` in place of NaN."""
    return None if math.isnan(value) else float(value)


def resampled_weights(groups: int, resamples: int, seed: int, *, at_once: int) -> Iterator[Floats]:
    """Draw as many groups as there are, with replacement, many times.

    Args:
        groups: number of groups.
        resamples: number of resamples in all.
        seed: of the random generator; the same seed and arguments give the same draws.
        at_once: resamples in one array, to bound memory.

    Yields:
        (groups, B) float64 with B <= ``at_once``: how often each group was drawn; each column sums to ``groups``.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(groups, size=(size, groups)) * size + np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=groups * size).reshape(groups, size).astype(np.float64)


def bootstrap(
    evaluate: Callable[[Floats], Mapping[str, Floats]], group: Ints, *, resamples: int, seed: int, cells: int = 1
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Evaluate metrics on all documents, and on resamples of their groups.

    Args:
        evaluate: metrics under document weights of shape (n, B); each has the shape (B, ...).
        group: (n,) index of each document's group, from 0.
        resamples: number of resamples.
        seed: of the random generator.
        cells: numbers that ``evaluate`` holds for each resample where these are more than documents.

    Returns:
        For each metric its value, (...), and its values on the resamples, (resamples, ...).
    """
    values = {name: found[0] for name, found in evaluate(np.ones((len(group), 1))).items()}
    at_once = max(1, _CELLS // max(len(group), cells))
    weights = resampled_weights(int(group.max()) + 1, resamples, seed, at_once=at_once)
    parts = [evaluate(drawn[group]) for drawn in weights]
    return values, {name: np.concatenate([part[name] for part in parts]) for name in values}


def estimate(value: float, resampled: Floats, *, groups: int) -> Estimate:
    """Put a percentile interval around a metric.

    Args:
        value: the metric on all documents.
        resampled: (B,) float64, the metric on each resample; resamples on which it is not defined (NaN) are left out,
            so the interval is conditional on its being defined.
        groups: number of groups the metric rests on. With fewer than two there is nothing to resample, and the ends
            are NaN rather than equal to the value, which would feign certainty.
    """
    defined = resampled[~np.isnan(resampled)]
    if groups < 2 or math.isnan(value) or not defined.size:
        return Estimate(float(value), math.nan, math.nan)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))
