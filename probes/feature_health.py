"""The Feature Health Score: a curve of probe accuracies over a module's layers as one number.

Source: Zhu et al., "Lost in the Hype", arXiv 2604.08333, 2026. The score is not corrected for chance, so always show it
together with the curve and its controls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    NO_VARIANCE,
    SHARE,
    Estimate,
    critical_t,
    effective_groups,
    estimate,
    size_inflation,
)
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.utils.record import Record

CLEAR = 2.0
"""Standard deviations of its noise above which a change between two layers counts as true by itself."""
DECAY = 0.2
"""How strongly changes between layers lower the score: lambda in the paper, which sets it to 0.2."""


@dataclass(frozen=True, slots=True)
class Health(Record):
    """The Feature Health Score of one curve, and its parts.

    Attributes:
        score: ``p_end * (1 + growth) * volatility``, as :func:`health_score` gives it.
        growth: the growth factor, ``ln(p_end / sqrt(p_start * p_min))``; NaN where one of the three is 0.
        volatility: the volatility penalty, from 0 to 1 (a flat curve, or one layer).
    """

    score: float
    growth: float
    volatility: float
    p_start: float
    p_min: float
    p_end: float


def health_score(accuracies: Floats, decay: float = DECAY) -> Floats:
    """Score curves; leading axes, such as bootstrap resamples, are separate curves.

    With P the accuracies from the first layer to the last::

        score      = P_end * (1 + growth) * volatility
        growth     = ln(P_end / sqrt(P_start * P_min))
        volatility = exp(-decay * sum |P_next - P| / P_end)

    A flat curve, and one of a single layer, scores its accuracy. If P_end is 0, the score is 0, its limit. If P_end is
    above 0 but P_start or P_min is 0, the growth is unbounded and the score NaN, as it is if an accuracy is NaN. A
    curve that ends below ``sqrt(P_start * P_min) / e`` scores below 0.

    Args:
        accuracies: (..., n) float64 between 0 and 1, n >= 1 layers in order; NaN for undefined accuracies.
        decay: lambda, at least 0.

    Returns:
        (...) float64.

    Raises:
        DataError: there is no layer, or an accuracy is outside 0 to 1.
        OptionError: ``decay`` is negative or not finite.
    """
    return _score(_checked(accuracies, decay), decay)


def health_estimate(correct: Floats, resampled: Floats, group: Ints) -> Estimate:
    """Score one curve, with its 95% interval.

    Noise adds changes between layers and lowers the minimum, so the score is biased. The bias depends on how much of
    the observed curve is noise. Its changes are therefore compared with those of the resamples around their mean: what
    exceeds them is true, and the rest is removed by shrinking the curve towards the straight line between its ends. The
    bias is that of noise around the shrunk curve. How much is noise is known to one standard error. A curve with few
    large changes, such as a step, keeps these and loses all others. The interval extends from the lowest to the highest
    of the observed score and the corrected ones.

    A curve near 100% hardly varies over the resamples. The lower side is therefore at least as long as what Wilson's
    interval of the last accuracy changes the score, and the upper side as what the interval of the last accuracy minus
    the first does. Whether the true score is lower depends on the noise of a lower curve, which is larger: that of
    shares grows with ``p (1 - p)``. The lower side therefore has the noise at the lower end of the interval of the mean
    accuracy. docs/statistics.md has the coverage in simulations.

    Args:
        correct: (n, t) float64, 1 where the probe of a layer is correct for a test document, else 0; layers in order.
        resampled: (B, n) accuracies on B resamples of groups.
        group: (t,) index of each document's group.

    Returns:
        The ends are NaN with one group, and where an accuracy is 0.
    """
    curve, groups, inflation = correct.mean(1), effective_groups(group), size_inflation(correct, group)
    value = float(health_score(curve))
    last = estimate(float(curve[-1]), resampled[:, -1], groups=groups, bounds=SHARE, inflation=float(inflation[-1]))
    if len(curve) == 1:
        return last
    if groups <= 1 or math.isnan(value) or curve.min() == 0:
        return Estimate(value, math.nan, math.nan)
    usual = float(np.median(inflation))
    deviations = (resampled - resampled.mean(0)) * math.sqrt(groups / (groups - 1) * usual)
    centres, errors = [value], []
    for centre in _without_noise(curve, deviations):
        scores = _score(centre + deviations, DECAY)
        scores = scores[~np.isnan(scores)]
        centres.append(value - float(scores.mean() - _score(centre, DECAY)))
        errors.append(float(scores.std()))
    gain = paired_difference(correct[-1] - correct[0], resampled[:, -1] - resampled[:, 0], group)
    _, growth, volatility, end = _parts(curve, DECAY)
    t = critical_t(groups)
    mean = estimate(float(curve.mean()), resampled.mean(1), groups=groups, bounds=SHARE, inflation=usual)
    lower_noise = max(1.0, mean.low * (1 - mean.low) / (mean.value * (1 - mean.value))) if mean.value < 1 else 1.0

    def distance(slope: float, side: float, noise: Floats, variance: float = 1.0) -> float:
        """Return the length of a side: that of the score, and what resampling misses of one of its parts."""
        missed = max(0.0, side**2 - (t * float(noise.std())) ** 2)
        return math.sqrt(variance * (t * max(errors)) ** 2 + slope**2 * missed)

    # By how much the score changes with the last accuracy if the others change in proportion, and if they do not.
    below = distance(float((1 + growth) * volatility), last.value - last.low, deviations[:, -1], lower_noise)
    above = distance(float(volatility * end / curve[0]), gain.high - gain.value, deviations[:, -1] - deviations[:, 0])
    return Estimate(value, min(centres) - below, max(centres) + above)


def _without_noise(curve: Floats, deviations: Floats) -> list[Floats]:
    """Return what may be the curve without the changes that are noise.

    Args:
        curve: (n,) accuracies, n of at least 2.
        deviations: (B, n) noise of the curve.

    Returns:
        Curves with the same ends, (n,) each: shrunk towards the straight line between them, if the noise is one
        standard error larger than expected and if it is one smaller; and, where some changes but not all exceed their
        noise, with those changes and the mean of the others in place of each other one.
    """
    line = np.linspace(curve[0], curve[-1], len(curve))
    slopes = (deviations[:, -1:] - deviations[:, :1]) / (len(curve) - 1)
    noise = ((np.diff(deviations, axis=1) - slopes) ** 2).sum(1)
    observed = float((np.diff(curve - line) ** 2).sum())

    def shrunk(expected: float) -> Floats:
        share = 1 - expected / observed if observed > NO_VARIANCE else 0.0
        result: Floats = line + math.sqrt(max(0.0, share)) * (curve - line)
        return result

    curves = [shrunk(float(noise.mean() + noise.std())), shrunk(max(0.0, float(noise.mean() - noise.std())))]
    changes = np.diff(curve)
    true = np.abs(changes - np.median(changes)) > CLEAR * np.diff(deviations, axis=1).std(0)
    if true.any() and not true.all():
        changes = np.where(true, changes, changes[~true].mean())
        steps = curve[0] + np.concatenate([[0.0], changes.cumsum()])
        curves.append(steps.clip(curve.min(), curve.max()))
    return curves


def health(accuracies: Floats, decay: float = DECAY) -> Health:
    """Score one curve, (n,) float64, and return the parts as well.

    Raises:
        DataError: ``accuracies`` is not one curve, or not one that :func:`health_score` takes.
        OptionError: ``decay`` is negative or not finite.
    """
    curve = np.asarray(accuracies, dtype=np.float64)
    if curve.ndim != 1:
        raise DataError(
            f"Expected `accuracies` of one curve, shape (n,), got shape {curve.shape}. Score several at once with "
            "`health_score`."
        )
    low, growth, volatility, end = _parts(_checked(curve, decay), decay)
    return Health(
        score=float(_score(curve, decay)),
        growth=float(growth),
        volatility=float(volatility),
        p_start=float(curve[0]),
        p_min=float(low),
        p_end=float(end),
    )


def _checked(accuracies: Floats, decay: float) -> Floats:
    curves = np.asarray(accuracies, dtype=np.float64)
    if curves.ndim == 0 or curves.shape[-1] == 0:
        raise DataError(
            f"Expected `accuracies` of at least one layer, shape (..., n), got shape {curves.shape}. Give the "
            "accuracy of the probe at each layer of the module."
        )
    if ((curves < 0) | (curves > 1)).any():
        raise DataError(
            f"Expected `accuracies` between 0 and 1, got {np.nanmin(curves):g} to {np.nanmax(curves):g}. Give "
            "fractions, not percent or chance-corrected figures."
        )
    if not (math.isfinite(decay) and decay >= 0):
        raise OptionError(f"Expected `decay` to be at least 0, got {decay!r}. The paper uses {DECAY}.")
    return curves


def _score(curves: Floats, decay: float) -> Floats:
    _, growth, volatility, end = _parts(curves, decay)
    score: Floats = np.where((end == 0) & ~np.isnan(curves).any(-1), 0.0, end * (1 + growth) * volatility)
    return score


def _parts(curves: Floats, decay: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Return P_min, growth, volatility and P_end, each (...); growth is NaN where it is unbounded."""
    # Unlike nanmin, min propagates NaN.
    start, low, end = curves[..., 0], curves.min(-1), curves[..., -1]
    change = np.abs(np.diff(curves, axis=-1)).sum(-1)
    bounded = (start > 0) & (low > 0) & (end > 0)
    # A difference of logarithms, because the product of two tiny accuracies could round to 0.
    logs = [np.log(np.where(bounded, values, 1.0)) for values in (end, start, low)]
    growth: Floats = np.where(bounded, logs[0] - (logs[1] + logs[2]) / 2, np.nan)
    relative = np.where(change > 0, np.inf, change)
    np.divide(change, end, out=relative, where=end > 0)
    # Without decay nothing is penalised, even an unbounded change.
    volatility: Floats = np.exp(-decay * relative) if decay else np.where(np.isnan(change), np.nan, 1.0)
    return low, growth, volatility, end
