"""Sensitivity at a fixed specificity and the reverse, for a score that ranks positives above negatives.

The threshold is one of the scores. Each resample has its own, so that intervals include the uncertainty of the
threshold. The value itself is optimistic, because the threshold is chosen on the documents on which it is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics.classification import Floats, Ints, Weights, ratio
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)

TARGETS: Final = (0.90, 0.95, 0.98)
"""Specificities (or sensitivities) that are fixed."""
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """What a score reaches at fixed targets.

    Attributes:
        targets: the fixed specificities, or sensitivities.
        sensitivity: highest sensitivity at a specificity of at least each target.
        specificity: highest specificity at a sensitivity of at least each target.
    """

    targets: tuple[float, ...]
    sensitivity: tuple[Estimate, ...]
    specificity: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RankedRows:
    """Rows that one score ranks against each other.

    Attributes:
        score: (m,) higher for documents more likely to be positive.
        positive: (m,) bool; both classes occur.
        rows: (m,) index of each row's document.
    """

    score: Floats
    positive: NDArray[np.bool_]
    rows: Ints


class FixedTargets:
    """Sensitivity and specificity at fixed targets, sorted once and evaluated under any weights of the documents.

    Args:
        ranked: the rows.
        targets: specificities, or sensitivities, that are fixed.
    """

    def __init__(self, ranked: RankedRows, targets: Sequence[float] = TARGETS) -> None:
        order = np.argsort(-ranked.score, kind="stable")
        self._positive = ranked.positive[order]
        self._rows = ranked.rows[order]
        # Equal scores are on the same side of every threshold.
        self._ends: Ints = np.append(np.flatnonzero(np.diff(ranked.score[order])), len(order) - 1)
        self._targets = np.array(targets)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return ``sensitivity`` and ``specificity`` for weights (n, B); (B, number of targets) each.

        A resample without positives or without negatives is NaN.
        """
        drawn = weights.T.take(self._rows, axis=1).astype(np.float64)
        # Positives and negatives at or above each threshold; the first threshold is above all scores.
        above = np.zeros((2, len(drawn), len(self._ends) + 1))
        for index, members in enumerate((self._positive, ~self._positive)):
            above[index, :, 1:] = np.cumsum(drawn * members, axis=1)[:, self._ends]
        positives, negatives = above[0, :, -1:], above[1, :, -1:]
        sensitivity = np.empty((len(drawn), len(self._targets)))
        specificity = np.empty_like(sensitivity)
        for index, target in enumerate(self._targets):
            # Both counts grow with lower thresholds: the last that is allowed, and the first that suffices.
            last = (above[1] <= (1 - target) * negatives + _ROUNDING).sum(1) - 1
            first = (above[0] < target * positives - _ROUNDING).sum(1)
            sensitivity[:, index] = np.take_along_axis(above[0], last[:, None], 1)[:, 0]
            specificity[:, index] = negatives[:, 0] - np.take_along_axis(above[1], first[:, None], 1)[:, 0]
        defined = (positives > 0) & (negatives > 0)
        return {
            "sensitivity": np.where(defined, ratio(sensitivity, positives), np.nan),
            "specificity": np.where(defined, ratio(specificity, negatives), np.nan),
        }


def operating_points(
    parts: Sequence[RankedRows], group: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> OperatingPoints:
    """Return sensitivity at fixed specificities and the reverse, with intervals over groups.

    Args:
        parts: the rows; several where documents were asked about in several ways, whose scores do not rank against
            each other. Values are means over them.
        group: (n,) index of the group of each document.
        resamples: bootstrap resamples.
        seed: seed of the random generator.
    """
    _, group = np.unique(group, return_inverse=True)
    evaluators = [FixedTargets(part) for part in parts]

    def evaluate(weights: Weights) -> dict[str, Floats]:
        reached = [evaluator(weights) for evaluator in evaluators]
        return {name: np.mean([values[name] for values in reached], axis=0) for name in ("sensitivity", "specificity")}

    values, resampled = bootstrap(evaluate, group, resamples=resamples, seed=seed, cells=3 * len(group))

    def estimates(name: str) -> tuple[Estimate, ...]:
        members = np.unique(np.concatenate([part.rows[part.positive == (name == "sensitivity")] for part in parts]))
        own = np.unique(group[members], return_inverse=True)[1]
        return tuple(
            estimate(
                float(value),
                draws,
                groups=effective_groups(own),
                bounds=SHARE,
                inflation=_inflation(parts[0], group, name, float(value)),
            )
            for value, draws in zip(values[name], resampled[name].T, strict=True)
        )

    return OperatingPoints(TARGETS, estimates("sensitivity"), estimates("specificity"))


def _inflation(part: RankedRows, group: Ints, name: str, value: float) -> float:
    """Return the factor of the variance for groups of unequal size, from the rows that are classified correctly."""
    members = part.positive == (name == "sensitivity")
    toward = part.score[members] if name == "sensitivity" else -part.score[members]
    correct = np.zeros(len(toward))
    correct[np.argsort(-toward, kind="stable")[: round(value * len(toward))]] = 1.0
    return float(size_inflation(correct, group[part.rows[members]]))
