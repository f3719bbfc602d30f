"""ROC curves of the label scores, one class (or finding) against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medmllm_plugins.metrics.classification import Floats, Ints
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
    by_variant: dict[str, list[int]] = {}
    for index, outcome in enumerate(outcomes):
        by_variant.setdefault(outcome.variant, []).append(index)
    variants = [class_scores(result, rows) for rows in by_variant.values()]
    names = dict.fromkeys(name for variant in variants for name in variant)
    curves: dict[str, list[RocCurve]] = {
        name: [
            curve
            for variant in variants
            if name in variant and (curve := _curve(name, variant[name].score, variant[name].positive)) is not None
        ]
        for name in names
    }
    return [mean_curve(name, members) for name, members in curves.items() if members]


class ClassScores(NamedTuple):
    """The score of one class: log-odds (m,), whether it is the true class (m,), and index of each row (m,)."""

    score: Floats
    positive: npt.NDArray[np.bool_]
    rows: Ints


def class_scores(result: TaskResult, rows: Sequence[int]) -> dict[str, ClassScores]:
    """Return the scores of each class or finding for rows that were asked in one way; empty without label scores.

    Args:
        result: the result.
        rows: indices of its outcomes.
    """
    outcomes = result.task.outcomes
    scores: dict[str, ClassScores] = {}
    if result.multilabel:
        by_finding: dict[str, list[int]] = {}
        for row in rows:
            by_finding.setdefault(clean(outcomes[row].finding), []).append(row)
        for finding, members in by_finding.items():
            if {len(outcomes[row].scores or ()) for row in members} != {2}:
                return {}
            odds = log_odds(np.array([outcomes[row].scores for row in members], dtype=np.float64))[:, 0]
            positive = np.array([outcomes[row].label == "yes" for row in members])
            scores[finding] = ClassScores(odds, positive, np.array(members, dtype=np.intp))
        return scores
    labels = result.task.labels
    if {len(outcomes[row].scores or ()) for row in rows} != {len(labels)} or len(labels) < 2:
        return {}
    odds = log_odds(np.array([outcomes[row].scores for row in rows], dtype=np.float64))
    for index, label in enumerate(labels):
        positive = np.array([clean(outcomes[row].label) == label for row in rows])
        scores[label] = ClassScores(odds[:, index], positive, np.array(rows, dtype=np.intp))
    return scores


def _curve(name: str, score: Floats, positive: npt.NDArray[np.bool_]) -> RocCurve | None:
    """Return the curve of one class; ``None`` without positives or without negatives."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order]
    # Equal scores are one step, or the order of ties would count in the model's favour.
    ends_of_ties = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    y = np.concatenate([[0.0], np.cumsum(hit)[ends_of_ties] / hit.sum()])
    x = np.concatenate([[0.0], np.cumsum(~hit)[ends_of_ties] / (~hit).sum()])
    return RocCurve(name, x, y, _area(x, y), int(positive.sum()))


def mean_curve(name: str, curves: Sequence[RocCurve]) -> RocCurve:
    """Return the mean sensitivity at each specificity, thinned; its area is the mean of the areas.

    Args:
        name: name of the curve.
        curves: at least one; the number of positives is that of the first.
    """
    x, y = curves[0].x, curves[0].y
    if len(curves) > 1:
        grid = np.unique(np.concatenate([curve.x for curve in curves]))
        # Where a curve rises vertically it has two heights, and both count.
        low, high = (np.mean([_height(curve.x, curve.y, grid, side) for curve in curves], axis=0) for side in (0, 1))
        x, y = np.repeat(grid, 2), np.stack([low, high], axis=1).ravel()
    area = _area(x, y)
    # Inner points of a straight stretch add nothing but bytes.
    flat_x, flat_y = np.diff(x) == 0, np.diff(y) == 0
    keep = np.ones(len(x), dtype=bool)
    keep[1:-1] = ~(flat_x[:-1] & flat_x[1:] | flat_y[:-1] & flat_y[1:])
    return RocCurve(name, x[keep], y[keep], area, curves[0].positives)


def _area(x: Floats, y: Floats) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def _height(x: Floats, y: Floats, grid: Floats, side: int) -> Floats:
    """Return the heights of a curve at grid points: at the bottom (side 0) or top (side 1) of vertical stretches."""
    heights: Floats = np.interp(grid, x, y)
    own = np.isin(grid, x)
    heights[own] = y[np.searchsorted(x, grid[own], "right" if side else "left") - side]
    return heights
