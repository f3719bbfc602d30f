"""Whether the probabilities of the label scores can be trusted: reliability, ranking, operating points and referral."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.calibration import probabilities
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.multilabel import ANSWERS
from medmllm_plugins.metrics.operating_points import OperatingPoints, RankedRows, operating_points
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.referral import Referral, referral
from medmllm_plugins.metrics.reliability import ReliabilityBin, reliability_bins
from medmllm_plugins.report.roc_curves import RocCurve, class_scores, mean_curve, roc_curves
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.utils.json_values import clean

_MAX_CLASSES: Final = 40
"""Classes with operating points; each takes a bootstrap."""


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilityCheck:
    """The label scores of one model as probabilities.

    Attributes:
        bins: reliability of the label with the highest score.
        curves: the ROC curve of each class against the others, or of each finding.
        positive: class whose curve is shown first: the positive class of the data set, or of two classes the second;
            empty if there is none.
        points: sensitivity at fixed specificity and the reverse, by class or finding.
        referral: accuracy of the answers if the least confident ones are referred to a reader.
    """

    result: TaskResult
    bins: tuple[ReliabilityBin, ...]
    curves: tuple[RocCurve, ...]
    positive: str
    points: Mapping[str, OperatingPoints]
    referral: Referral

    @property
    def mean_curve(self) -> RocCurve | None:
        """The mean of the ROC curves; ``None`` without any."""
        return mean_curve("", self.curves) if self.curves else None

    def curve_of(self, name: str) -> RocCurve | None:
        """Return the ROC curve of a class; ``None`` if it has none."""
        return next((curve for curve in self.curves if curve.name == name), None)


def probability_checks(dataset: DatasetRuns) -> list[ProbabilityCheck]:
    """Check the label scores of each model's main result, where every answer has them."""
    results = [result for result in dataset.main_results() if "accuracy" in result.metrics]
    return [check for result in results if (check := _check(result)) is not None]


def _check(result: TaskResult) -> ProbabilityCheck | None:
    outcomes = result.task.outcomes
    labels = ANSWERS if result.multilabel else tuple(map(clean, result.task.labels))
    lengths = {len(outcome.scores or ()) for outcome in outcomes}
    if lengths != {len(labels)} or len(labels) < 2:
        return None
    shares = probabilities(np.array([outcome.scores for outcome in outcomes], dtype=np.float64))
    group = _group_index(outcomes)
    top = [labels[index] for index in shares.argmax(1)]
    correct = np.array([label == clean(row.label) for label, row in zip(top, outcomes, strict=True)], dtype=np.float64)
    curves = roc_curves(result)
    return ProbabilityCheck(
        result=result,
        bins=tuple(reliability_bins(shares.max(1), correct, group)),
        curves=tuple(curves),
        positive=_positive(result, labels),
        points=_operating_points(result, [curve.name for curve in curves[:_MAX_CLASSES]]),
        referral=referral(
            _answer_confidence(outcomes, shares, labels),
            np.array([row.predicted == row.label for row in outcomes], dtype=np.float64),
            group,
        ),
    )


def _positive(result: TaskResult, labels: Sequence[str]) -> str:
    if result.multilabel:
        return ""
    declared = clean(result.task.entry.positive or "")
    return declared if declared in labels else labels[-1] if len(labels) == 2 else ""


def _answer_confidence(outcomes: Sequence[Outcome], shares: Floats, labels: Sequence[str]) -> Floats:
    """Return the probability of each answered class; 0 for an unparsed answer, which a reader has to see first."""
    index = {label: position for position, label in enumerate(labels)}
    columns = [index.get(clean(outcome.predicted or ""), -1) for outcome in outcomes]
    confidence: Floats = np.where(np.array(columns) < 0, 0.0, shares[np.arange(len(shares)), columns])
    return confidence


def _operating_points(result: TaskResult, names: Sequence[str]) -> dict[str, OperatingPoints]:
    by_variant: dict[str, list[int]] = {}
    for index, outcome in enumerate(result.task.outcomes):
        by_variant.setdefault(outcome.variant, []).append(index)
    parts: dict[str, list[RankedRows]] = {name: [] for name in names}
    for rows in by_variant.values():
        for name, (score, positive, members) in class_scores(result, rows).items():
            if name in parts and positive.any() and not positive.all():
                parts[name].append(RankedRows(score, positive, members))
    group = _group_index(result.task.outcomes)
    return {name: operating_points(ranked, group) for name, ranked in parts.items() if ranked}


def _group_index(outcomes: Sequence[Outcome]) -> Ints:
    index: Ints = np.unique([outcome.group for outcome in outcomes], return_inverse=True)[1]
    return index
