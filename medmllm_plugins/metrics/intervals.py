"""Confidence intervals from the cluster bootstrap.

Documents of one group (a patient, a lesion, a source figure) are not independent, so groups are drawn with replacement
and each brings all of its documents. Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
10 (bias) and 13; Field and Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69, 2007 (clusters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
from scipy.special import ndtr, stdtrit

from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.utils.environment import processors
from medmllm_plugins.utils.record import Record

LEVEL = 0.95
SHARE: Final = (0.0, 1.0)
"""Lowest and highest value of an accuracy, and of other shares."""
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(("accuracy", "accuracy_on_parsed", "balanced", "macro_f1", "f1", "parsed", "flips"), SHARE),
    **dict.fromkeys(("sensitivity", "specificity", "auroc", "auprc", "exact_match"), SHARE),
    **dict.fromkeys(("mcc", "kappa"), (-1.0, 1.0)),
}
"""Lowest and highest value of metrics that have Wilson's interval."""
RANGES: Final[Mapping[str, tuple[float, float]]] = {"ece": SHARE, "brier": (0.0, 2.0), "spread": (0.0, 0.5)}
"""Lowest and highest value of further metrics."""
NO_VARIANCE: Final = 1e-12
"""Variances of shares up to this are rounding."""
_LARGEST_BIAS: Final = 1 / (math.sqrt(2) - 1)
"""Bias of a sum of absolute changes that are noise alone, in units of its change by resampling."""
_FEW_GROUPS: Final = 4
"""Fewer groups with the rarer outcome do not tell how strongly documents of a group correlate."""
RESAMPLES = 2000
_CELLS = 200_000
"""Numbers in one array of resampled weights, 0.8 MB: they stay near the processor, which is fastest."""
_THREADED: Final = 4_000_000
"""With fewer weights in all, one thread is done before others have started."""
_MAX_THREADS: Final = 8
_KEPT: Final = 31 << 20
"""Bytes; glibc adapts to freed blocks of up to 32 MB."""


@dataclass(frozen=True, slots=True)
class Estimate(Record):
    """A metric with its 95% interval.

    Attributes:
        value: the metric on all documents; NaN where it is not defined.
        low: lower end of the interval; NaN where the data have fewer than two groups to resample.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Return the value and its interval in percent, for people."""
        if math.isnan(self.low):
            return f"{self.value:.1%} (no interval: one group)"
        return f"{self.value:.1%} (95% CI {100 * self.low:.1f}–{100 * self.high:.1f})"


UNKNOWN: Final = Estimate(math.nan, math.nan, math.nan)


def known(value: Estimate | float | None) -> bool:
    """Return whether there is a number at all."""
    figure = value.value if isinstance(value, Estimate) else value
    return figure is not None and not math.isnan(figure)


def number(value: float) -> float | None:
    """Return a number as JSON can hold it, ``None`` in place of NaN."""
    return None if math.isnan(value) else float(value)


def resampled_weights(groups: int, resamples: int, seed: int, *, at_once: int) -> Iterator[Weights]:
    """Draw as many groups as there are, with replacement, many times.

    Args:
        groups: number of groups.
        resamples: number of resamples in all.
        seed: of the random generator; the same seed and arguments give the same draws.
        at_once: resamples in one array, to bound memory.

    Yields:
        (groups, B) with B <= ``at_once``: how often each group was drawn; each column sums to ``groups`` and is
        contiguous in memory. The draws do not depend on ``at_once``.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = np.empty((size, groups), dtype=np.int32)
        for row, drawn in zip(weights, generator.integers(groups, size=(size, groups)), strict=True):
            row[:] = np.bincount(drawn, minlength=groups)
        yield weights.T


def bootstrap(
    evaluate: Callable[[Weights], Mapping[str, Floats]], group: Ints, *, resamples: int, seed: int, cells: int = 1
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Evaluate metrics on all documents, and on resamples of their groups.

    Time grows with documents times resamples. The work is shared among threads in parts that do not depend on their
    number, so that the machine changes no figure.

    Args:
        evaluate: metrics under document weights of shape (n, B), whole numbers, each column contiguous in memory; each
            metric has the shape (B, ...). Called from several threads.
        group: (n,) index of each document's group, from 0.
        resamples: number of resamples.
        seed: of the random generator.
        cells: numbers that ``evaluate`` holds for each resample where these are more than documents.

    Returns:
        For each metric its value, (...), and its values on the resamples, (resamples, ...).
    """
    # glibc gives the memory of large arrays back to the system at once, and getting it again page by page takes half of
    # the time, unless a larger block was freed before. This one is never touched.
    np.empty(_KEPT, dtype=np.uint8)
    sizes = np.bincount(group)
    # Half the bytes are twice as fast to sort and to sum; twice the weight of a resample never exceeds this bound.
    narrow = 2 * len(sizes) * int(sizes.max()) < np.iinfo(np.int32).max

    def of_documents(drawn: Weights) -> Weights:
        weights = np.take(drawn.T, group, axis=1).T
        return weights.astype(np.int32, copy=False) if narrow else weights.astype(np.int64)

    values = {
        name: columns[0] for name, columns in evaluate(of_documents(np.ones((len(sizes), 1), dtype=np.int32))).items()
    }
    at_once = max(1, _CELLS // max(len(group), cells))
    resamples_left = enumerate(resampled_weights(len(sizes), resamples, seed, at_once=at_once))
    parts: dict[int, Mapping[str, Floats]] = {}
    lock = Lock()

    def work() -> None:
        while True:
            with lock:
                index, drawn = next(resamples_left, (-1, None))
            if drawn is None:
                return
            parts[index] = evaluate(of_documents(drawn))

    threads = min(processors(), _MAX_THREADS) if len(group) * resamples >= _THREADED else 1
    if threads == 1:
        work()
    else:
        with ThreadPoolExecutor(threads) as pool:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
    return values, {name: np.concatenate([parts[index][name] for index in sorted(parts)]) for name in values}


def estimate(
    value: float,
    resampled: Floats,
    *,
    groups: float,
    bounds: tuple[float, float] | None = None,
    inflation: float = 1.0,
) -> Estimate:
    """Put an interval around a metric.

    Near the end of its range a metric such as an accuracy varies little or not at all over the resamples. With
    ``bounds`` the interval is therefore Wilson's, for the sample size at which a proportion would vary as much as the
    metric does over the resamples. If the metric does not vary, the sample size is the number of groups.

    Without ``bounds`` the interval is the value plus and minus multiples of its standard error, and extended by its
    possible bias. Sums of absolute changes, as in the Feature Health Score or a calibration error, are biased by the
    noise of the sample; on the resamples, by that of the resample as well. The bias of the value is one to
    1 / (sqrt(2) - 1) times the difference between the two: one if true changes outweigh the noise, the latter if there
    are none.

    Both use quantiles of Student's t. docs/diagnosis.md has their coverage in simulations.

    Sources: Wilson, "Probable inference, the law of succession, and statistical inference", 1927; Korn and Graubard,
    "Confidence intervals for proportions with small expected number of positive counts", 1998 (effective sample size);
    Efron and Tibshirani, chapter 10 (bias).

    Args:
        value: the metric on all documents.
        resampled: (B,) float64, the metric on each resample; resamples on which it is not defined (NaN) are left out,
            so the interval is conditional on its being defined.
        groups: number of groups the metric rests on, see :func:`effective_groups`. With one there is nothing to
            resample, and the ends are NaN rather than equal to the value, which would feign certainty.
        bounds: lowest and highest value that the metric can take.
        inflation: factor of the variance, see :func:`size_inflation`.
    """
    defined = resampled[~np.isnan(resampled)]
    if groups <= 1 or math.isnan(value) or not defined.size:
        return Estimate(float(value), math.nan, math.nan)
    variance = inflation * float(defined.var()) * resampling_factor(groups)
    t = critical_t(groups)
    if bounds is None:
        bias = float(defined.mean()) - value
        centres = (value - bias, value - _LARGEST_BIAS * bias)
        margin = t * math.sqrt(variance)
        return Estimate(float(value), min(value, *centres) - margin, max(value, *centres) + margin)
    width = bounds[1] - bounds[0]
    share = min(1.0, max(0.0, (value - bounds[0]) / width))
    variance /= width**2
    size = share * (1 - share) / variance if variance > NO_VARIANCE and 0 < share < 1 else float(groups)
    centre = (share + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t * math.sqrt(share * (1 - share) / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    # Rounding must not push an end past the value at the end of the range.
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Estimate(float(value), bounds[0] + width * low, bounds[0] + width * high)


def size_inflation(rows: Floats, group: Ints) -> Floats:
    """Return by how much variances of shares are to be enlarged where groups are of unequal size, or few have errors.

    The variance of a mean over the resamples depends on the sizes of the few groups that contain the rarer outcome: if
    they happen to be small, it is too low. Here the correlation within groups is estimated from all groups, weighted by
    their degrees of freedom, and the variance follows from it and from the sizes of all groups. The larger of the two
    variances is used. With groups of equal size they are equal.

    Fewer than four groups with the rarer outcome hardly tell how strongly documents of a group correlate, so the
    correlation is then taken to be closer to 1: by a quarter of the distance with three of them, by half with two.

    Source: Fleiss and Cuzick, "The reliability of dichotomous judgments: unequal numbers of judges per subject", 1979.

    Args:
        rows: (..., n) values of the documents, such as 1 for a correct answer and 0 for a wrong one, or differences of
            such values.
        group: (n,) index of each document's group.

    Returns:
        (...) float64, at least 1.
    """
    _, group = np.unique(group, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    n, groups = sizes.sum(), len(sizes)
    means = rows.mean(-1, keepdims=True)
    deviations = rows - means

    def by_group(values: Floats) -> Floats:
        flat = values.reshape(-1, len(group))
        return np.array([np.bincount(group, row, groups) for row in flat]).reshape(*rows.shape[:-1], groups)

    sums, positive = by_group(deviations), by_group(np.abs(rows))
    variance = (deviations**2).mean(-1)
    between = (sums**2).sum(-1) / n**2
    varies = (variance > NO_VARIANCE) & (between > NO_VARIANCE)
    spread = np.where(varies, variance, 1.0)
    correlation = ((sums**2 / sizes).sum(-1) / spread - groups) / max(n - groups, 1.0)
    rarer = np.minimum((positive > 0).sum(-1), (positive < sizes).sum(-1))
    unknown = np.maximum(0.0, 1 - rarer / _FEW_GROUPS)
    correlation = correlation + unknown * (1 - np.maximum(correlation, 0.0))
    expected = spread * (1 + correlation * ((sizes**2).sum() / n - 1)) / n
    inflation: Floats = np.where(varies, np.maximum(1.0, expected / np.where(varies, between, 1.0)), 1.0)
    return inflation


def resampling_factor(groups: float) -> float:
    """Return by what to multiply a variance over resamples of G groups, which is (G - 1) / G of that of samples."""
    return groups / max(groups - 1, 1.0)


def critical_t(groups: float) -> float:
    """Return how many standard errors a two-sided 95% interval extends, by Student's t for the number of groups."""
    return _quantile_of_t(groups, 1 - (1 - LEVEL) / 2)


def _quantile_of_t(groups: float, probability: float) -> float:
    return float(stdtrit(max(groups - 1, 1.0), probability))


@dataclass(frozen=True, slots=True, eq=False)
class SimultaneousBounds:
    """One-sided bounds of several figures that hold for all of them at once.

    Attributes:
        low: (M,) lower bounds; in 95% of samples none of them is above its true figure.
        high: (M,) upper bounds, likewise.
        critical: number of standard errors between a figure and its bounds.
    """

    low: Floats
    high: Floats
    critical: float


def simultaneous_bounds(values: Floats, resampled: Floats, *, groups: float) -> SimultaneousBounds:
    """Bound correlated differences from below and from above, so that at most 5% of families have a wrong bound.

    The critical value is the 95th percentile, over the resamples, of the largest deviation in standard errors, and is
    taken from the normal to Student's t distribution, because the standard errors of few groups are uncertain. A figure
    that does not vary over the resamples is its own bound. docs/diagnosis.md has the error rates in simulations.

    Sources: Westfall and Young, "Resampling-Based Multiple Testing", 1993, section 2.5 (maximum of the statistics).

    Args:
        values: (M,) figures on all documents.
        resampled: (B, M) the same on the same B resamples of groups, without NaN.
        groups: number of groups, see :func:`effective_groups`. With one the bounds are NaN.
    """
    if groups <= 1:
        unknown = np.full(len(values), math.nan)
        return SimultaneousBounds(unknown, unknown, math.nan)
    deviations = resampled - resampled.mean(0)
    errors: Floats = np.sqrt((deviations**2).mean(0))
    errors[errors**2 <= NO_VARIANCE] = 0.0
    scaled = deviations[:, errors > 0] / errors[errors > 0]
    if not scaled.size:
        return SimultaneousBounds(values, values, 0.0)
    # Both directions are pooled, so that the bounds of negated figures are the negated bounds.
    largest = np.concatenate([scaled.max(1), -scaled.min(1)])
    critical = _quantile_of_t(groups, float(ndtr(np.quantile(largest, LEVEL))))
    margin = critical * errors * math.sqrt(resampling_factor(groups))
    return SimultaneousBounds(values - margin, values + margin, critical)


def effective_groups(group: Ints) -> float:
    """Return how many groups of equal size vary as much as groups of unequal sizes do.

    Source: Kish, "Survey Sampling", 1965, section 8.2 (weights).

    Args:
        group: (n,) index of each document's group.
    """
    sizes = np.bincount(group).astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def estimate_metrics(
    values: Mapping[str, Floats],
    resampled: Mapping[str, Floats],
    *,
    groups: float,
    inflation: float,
    inflation_of: Mapping[str, float],
) -> dict[str, Estimate]:
    """Return metrics with their intervals, from what :func:`bootstrap` returns.

    ``inflation_of`` has the factors of the variances that differ from ``inflation``, by metric.
    """
    return {
        name: estimate_metric(
            name, float(values[name]), resampled[name], groups=groups, inflation=inflation_of.get(name, inflation)
        )
        for name in values
    }


def estimate_metric(name: str, value: float, resampled: Floats, *, groups: float, inflation: float) -> Estimate:
    """Return a metric with its interval, by its name, such as ``auroc`` or ``busi:sum:auroc``; see :func:`estimate`."""
    metric = name.rpartition(":")[2]
    interval = estimate(value, resampled, groups=groups, bounds=BOUNDS.get(metric), inflation=inflation)
    low, high = np.clip([interval.low, interval.high], *RANGES.get(metric, (-math.inf, math.inf)))
    return Estimate(interval.value, float(low), float(high))
