"""ROC curves of the label scores, one class (or finding) against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.ranking import log_odds
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.utils.json_values import clean


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """The ROC curve of one class.

    Attributes:
        x: 1 - specificity, ascending from 0 to 1.
        y: sensitivity at each of these.
    """

    name: str
    x: Floats
    y: Floats
    area: float
    positives: int


def roc_curves(result: TaskResult) -> list[RocCurve]:
    """Return the ROC curve of each class or finding; empty without label scores.

    If a task asks in several ways, curves are means over these, as its metrics are: scores under one order of the
    options do not rank against those under another.
    """
    outcomes = result.task.outcomes
    if not outcomes or any(outcome.scores is None for outcome in outcomes):
        return []
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_variant.setdefault(outcome.variant, []).append(outcome)
    curves = [_variant_curves(result, rows) for rows in by_variant.values()]
    names = dict.fromkeys(name for variant in curves for name in variant)
    return [_mean_curve(name, [variant[name] for variant in curves if name in variant]) for name in names]


def _variant_curves(result: TaskResult, rows: Sequence[Outcome]) -> dict[str, tuple[Floats, Floats, int]]:
    """Return 1 - specificity, sensitivity and number of positives of each class, for rows asked in one way."""
    scores: dict[str, tuple[Floats, npt.NDArray[np.bool_]]] = {}
    if result.multilabel:
        for finding in dict.fromkeys(clean(row.finding) for row in rows):
            members = [row for row in rows if clean(row.finding) == finding]
            if {len(row.scores or ()) for row in members} != {2}:
                return {}
            odds = log_odds(np.array([row.scores for row in members], dtype=np.float64))[:, 0]
            scores[finding] = odds, np.array([row.label == "yes" for row in members])
    else:
        labels = result.task.labels
        if {len(row.scores or ()) for row in rows} != {len(labels)} or len(labels) < 2:
            return {}
        odds = log_odds(np.array([row.scores for row in rows], dtype=np.float64))
        for index, label in enumerate(labels):
            scores[label] = odds[:, index], np.array([clean(row.label) == label for row in rows])
    return {name: curve for name, pair in scores.items() if (curve := _curve(*pair)) is not None}


def _curve(score: Floats, positive: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, int] | None:
    """Return the curve of one class; ``None`` without positives or without negatives."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order]
    # Equal scores are one step, or the order of ties would count in the model's favour.
    ends_of_ties = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    y = np.concatenate([[0.0], np.cumsum(hit)[ends_of_ties] / hit.sum()])
    x = np.concatenate([[0.0], np.cumsum(~hit)[ends_of_ties] / (~hit).sum()])
    return x, y, int(positive.sum())


def _mean_curve(name: str, curves: Sequence[tuple[Floats, Floats, int]]) -> RocCurve:
    """Return the mean sensitivity at each specificity, thinned; its area is the mean of the areas."""
    x, y, count = curves[0]
    if len(curves) > 1:
        grid = np.unique(np.concatenate([curve[0] for curve in curves]))
        # Where a curve rises vertically it has two heights, and both count.
        low, high = (np.mean([_height(*curve[:2], grid, side) for curve in curves], axis=0) for side in (0, 1))
        x, y = np.repeat(grid, 2), np.stack([low, high], axis=1).ravel()
    area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
    # Inner points of a straight stretch add nothing but bytes.
    flat_x, flat_y = np.diff(x) == 0, np.diff(y) == 0
    keep = np.ones(len(x), dtype=bool)
    keep[1:-1] = ~(flat_x[:-1] & flat_x[1:] | flat_y[:-1] & flat_y[1:])
    return RocCurve(name, x[keep], y[keep], area, count)


def _height(x: Floats, y: Floats, grid: Floats, side: int) -> Floats:
    """Return the heights of a curve at grid points: at the bottom (side 0) or top (side 1) of vertical stretches."""
    heights: Floats = np.interp(grid, x, y)
    own = np.isin(grid, x)
    heights[own] = y[np.searchsorted(x, grid[own], "right" if side else "left") - side]
    return heights
