"""Metrics of one data set from its scored documents, with intervals and baselines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.calibration import Bin, Calibration
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.guessing import baselines, majority_class
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    UNKNOWN,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    estimate_metric,
    size_inflation,
)
from medmllm_plugins.metrics.label_scores import LabelScores, forms
from medmllm_plugins.metrics.outcome_arrays import OVERALL, SCORED, Distinct, Tables, score_matrix
from medmllm_plugins.metrics.outcomes import STATUSES, UNPARSED, Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.validation import check_options, check_outcomes
from medmllm_plugins.utils.record import Record, VersionedRecord

METRICS_FORMAT: Final = "medmllm_metrics"
INTERVAL: Final = "95%, cluster bootstrap over groups; Wilson's for shares, Student's t for others"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary(Record):
    """One class against all others.

    Attributes:
        label: the class.
        n: documents of this class.
        n_groups: groups with at least one document of this class.
        sensitivity: share of its documents answered with it; NaN where it has none.
        specificity: share of the other documents answered with another class (an unparsed answer counts against it);
            NaN where there are none.
        precision: share of correct answers among those that name the class; NaN where none does.
        f1: F1 of the class; NaN where it is neither true nor answered anywhere.
        parsed: share of its documents whose answer names a class; NaN where it has none. Answers about one class that
            are parsed less often than those about another lower its sensitivity.
    """

    label: str
    n: int
    n_groups: int
    sensitivity: Estimate
    specificity: Estimate
    precision: float
    f1: float
    parsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionMatrix(Record):
    """Documents by true class and answer.

    Attributes:
        rows: the K true classes.
        columns: the K answered classes, then ``(ambiguous)``, ``(out_of_list)`` and ``(refusal)``.
        counts: (K, K + 3) number of documents.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(VersionedRecord):
    """All metrics of a multi-class or ordinal task; intervals are over the same resamples of groups.

    Attributes:
        labels: the K classes in order.
        positive: the positive class, if the data set has one.
        n: documents.
        n_groups: groups they belong to.
        metrics: ``accuracy``, ``balanced``, ``macro_f1``, ``mcc``, ``parsed``; ``kappa`` where the classes are ordered;
            and where every document has scores and at least two classes occur, ``auroc``, ``auprc`` (average
            precision), ``ece`` (expected calibration error) and ``brier``.
        accuracy_on_parsed: accuracy on parsed answers; NaN where none was parsed.
        sensitivity: sensitivity of ``positive``; ``null`` without such a class.
        specificity: likewise.
        baselines: scores of answering without the image, by baseline and metric.
        majority: the class that the majority baseline answers.
        per_class: one entry for each class, in class order.
        confusion: the confusion matrix.
        statuses: number of answers of each status.
        reliability: the reliability diagram of the label scores; empty without them.
        label_scores: by form of the label scores (sum, mean, calibrated), the metrics of answering with the label that
            scores highest; empty without scores.
        interval: how intervals were computed.
        resamples: bootstrap resamples drawn.
        seed: seed of the resamples.
    """

    FORMAT: ClassVar[str] = METRICS_FORMAT

    labels: tuple[str, ...]
    positive: str | None
    n: int
    n_groups: int
    metrics: Mapping[str, Estimate]
    accuracy_on_parsed: Estimate
    sensitivity: Estimate | None
    specificity: Estimate | None
    baselines: Mapping[str, Mapping[str, float]]
    majority: str
    per_class: tuple[ClassSummary, ...]
    confusion: ConfusionMatrix
    statuses: Mapping[str, int]
    reliability: tuple[Bin, ...]
    label_scores: Mapping[str, Mapping[str, Estimate]]
    interval: str = INTERVAL
    resamples: int
    seed: int

    def headline(self) -> str:
        """Return one sentence: accuracy, the baseline it has to exceed, and how many answers were parsed."""
        accuracy = self.metrics["accuracy"]
        return (
            f"accuracy {accuracy.percent()} (majority class {self.baselines['majority_class']['accuracy']:.1%}), "
            f"balanced accuracy {self.metrics['balanced'].percent()}, "
            f"{self.metrics['parsed'].value:.1%} of {self.n} answers parsed, {self.n_groups} groups."
        )


class _Evaluator:
    """The answers of one data set, evaluated under any weights of its documents.

    Attributes:
        truth: (n,) index of the true class.
        answer: (n,) index of the answered class, K where the answer was not parsed.
        group: (n,) index of the group.
        metrics: names of the overall metrics.
        calibration: calibration of the label scores; ``None`` unless every document has scores and two classes occur.
    """

    def __init__(self, outcomes: Sequence[Outcome], labels: Sequence[str], kind: str) -> None:
        """Arrange the outcomes of one task, in the order in which they are to be weighted."""
        classes = len(labels)
        class_index: dict[str | None, int] = {label: k for k, label in enumerate(labels)}
        group_index = {group: g for g, group in enumerate(sorted({outcome.group for outcome in outcomes}))}
        self.truth: Ints = np.array([class_index[outcome.label] for outcome in outcomes], dtype=np.intp)
        self.answer: Ints = np.array([class_index.get(o.predicted, classes) for o in outcomes], dtype=np.intp)
        self.group: Ints = np.array([group_index[outcome.group] for outcome in outcomes], dtype=np.intp)
        self._overall = {**OVERALL, "kappa": classification.quadratic_kappa} if kind == "ordinal" else OVERALL
        self.metrics = (*self._overall, *SCORED)
        scores = score_matrix(outcomes)
        is_ranked = scores is not None and np.unique(self.truth).size > 1
        self._ranking = MacroRanking(scores, self.truth) if scores is not None and is_ranked else None
        self.calibration = Calibration(scores, self.truth) if scores is not None and is_ranked else None
        by_form = {name: matrix.argmax(1).astype(np.intp) for name, matrix in forms(outcomes).items() if is_ranked}
        self._answers = {"": self.answer, "sum": self.answer, **by_form}
        self._classes = classes
        # Documents that are alike in all that is counted are taken together.
        self._kinds = Distinct(self.truth, self.answer, *by_form.values())
        truth = self._kinds.of(self.truth)
        self._tables = Tables(truth, self._kinds.of(self.answer), classes)
        self._forms = LabelScores({form: self._kinds.of(best) for form, best in by_form.items()}, truth, classes)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return every metric under document weights of shape (n, B): (B,) arrays, those by class (B, K)."""
        by_kind = self._kinds(weights)
        counts = self._tables(by_kind)
        values = {name: metric(counts) for name, metric in self._overall.items()}
        if self._ranking is not None and self.calibration is not None:
            values["auroc"], values["auprc"] = self._ranking(weights)
            values["ece"], values["brier"] = self.calibration(weights)
            values |= self._forms(by_kind, values["auroc"])
        values["accuracy_on_parsed"] = classification.accuracy_on_parsed(counts)
        values["sensitivity"] = classification.sensitivity(counts)
        values["specificity"] = classification.specificity(counts)
        return values

    def counts(self) -> Floats:
        """Return the confusion counts of all documents, (K, K + 1)."""
        counts: Floats = self._tables(self._kinds(np.ones((len(self.truth), 1))))[0]
        return counts

    def n_groups(self, rows: NDArray[np.bool_] | None = None) -> int:
        """Return the number of groups of some documents, all of them by default."""
        return int(np.unique(self.group if rows is None else self.group[rows]).size)

    def share(
        self, value: Floats, resampled: Floats, documents: NDArray[np.bool_], other: int | None = None
    ) -> Estimate:
        """Return the share of correct answers, or of those that do not name ``other``, with its interval."""
        group = self.group[documents]
        if not group.size:
            return UNKNOWN
        hits = self.answer == self.truth if other is None else (self.answer != other) & (self.answer < self._classes)
        return estimate(
            float(value),
            resampled,
            groups=effective_groups(group),
            bounds=SHARE,
            inflation=float(size_inflation(hits[documents].astype(np.float64), group)),
        )

    def inflation(self, name: str) -> float:
        """Return by how much the variance of a metric of all documents is to be enlarged, by the shares it rests on."""
        if name in ("auroc", "sum:auroc") and self._ranking is not None:
            return self._ranking.inflation(self.group)
        hits = self._answers["sum" if name in SCORED else name.rpartition(":")[0]] == self.truth
        if name == "parsed":
            hits = self.answer < self._classes
        return float(size_inflation(hits.astype(np.float64), self.group))


def summarise(
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
    positive: str | None,
    *,
    kind: str = "multiclass",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Compute every metric with a cluster bootstrap interval.

    All metrics are computed on the same resamples of groups, so that their intervals can be compared. In a resample,
    means over classes run over the classes that occur in it, and a resample on which a metric is not defined is left
    out of that metric's interval. An interval needs two groups to resample: with one group (or, for the sensitivity and
    specificity of a class, one group with the documents in question) its ends are NaN, ``None`` in JSON.

    Args:
        outcomes: one for each document; their order changes nothing.
        labels: the K >= 2 classes, in the order of ``Outcome.scores`` and of all tables.
        positive: the class whose sensitivity and specificity are reported at the top level. For two classes it does
            not change the AUROC, which is the same for either.
        kind: ``"ordinal"`` where the order of ``labels`` is that of grades; then ``kappa`` is among the metrics.
        resamples: bootstrap resamples.
        seed: seed of the random generator; same seed, same intervals.

    Raises:
        DataError: there are no outcomes, an id occurs twice, a true or predicted class is not in ``labels``, or a
            document's scores are not K numbers; the message names up to 20 and gives the count.
        OptionError: ``labels``, ``positive``, ``resamples`` or ``seed`` is invalid.
    """
    labels = tuple(labels)
    check_options(labels, positive, resamples, seed)
    check_outcomes(outcomes, labels)
    # A fixed order of documents and groups, so that the seed alone decides what is drawn.
    ordered = sorted(outcomes, key=lambda outcome: outcome.id)
    evaluator = _Evaluator(ordered, labels, kind)
    cells = len(labels) * (len(labels) + 1)
    values, resampled = bootstrap(evaluator, evaluator.group, resamples=resamples, seed=seed, cells=cells)
    groups = effective_groups(evaluator.group)

    def overall(name: str) -> Estimate:
        value, inflation = float(values[name]), evaluator.inflation(name)
        return estimate_metric(name, value, resampled[name], groups=groups, inflation=inflation)

    counts = evaluator.counts()
    per_class = _per_class(evaluator, labels, counts, values, resampled)
    chosen = None if positive is None else per_class[labels.index(positive)]
    statuses = Counter(outcome.status for outcome in ordered)
    support = counts.sum(1)
    return Summary(
        labels=labels,
        positive=positive,
        n=len(ordered),
        n_groups=evaluator.n_groups(),
        metrics={name: overall(name) for name in evaluator.metrics if name in values},
        accuracy_on_parsed=evaluator.share(
            values["accuracy_on_parsed"], resampled["accuracy_on_parsed"], evaluator.answer < len(labels)
        ),
        sensitivity=None if chosen is None else chosen.sensitivity,
        specificity=None if chosen is None else chosen.specificity,
        baselines=baselines(support),
        majority=labels[majority_class(support)],
        per_class=per_class,
        confusion=_confusion(ordered, labels),
        statuses={status: statuses[status] for status in STATUSES},
        reliability=() if evaluator.calibration is None else evaluator.calibration.table(),
        label_scores=_by_form({name: overall(name) for name in values if ":" in name}),
        resamples=resamples,
        seed=seed,
    )


def _per_class(
    evaluator: _Evaluator,
    labels: Sequence[str],
    counts: Floats,
    values: Mapping[str, Floats],
    resampled: Mapping[str, Floats],
) -> tuple[ClassSummary, ...]:
    precision, f1 = classification.precision(counts), classification.f1(counts)

    summaries = []
    for k, label in enumerate(labels):
        members = evaluator.truth == k
        recall, others = (values[name][k] for name in ("sensitivity", "specificity"))
        recalls, others_resampled = (resampled[name][:, k] for name in ("sensitivity", "specificity"))
        summaries.append(
            ClassSummary(
                label=label,
                n=int(counts[k].sum()),
                n_groups=evaluator.n_groups(members),
                sensitivity=evaluator.share(recall, recalls, members),
                specificity=evaluator.share(others, others_resampled, ~members, other=k),
                precision=float(precision[k]),
                f1=float(f1[k]),
                parsed=float(counts[k, : len(labels)].sum() / counts[k].sum()) if counts[k].any() else math.nan,
            )
        )
    return tuple(summaries)


def _by_form(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    """Return estimates named ``form:metric`` by form and metric."""
    grouped: dict[str, dict[str, Estimate]] = {}
    for name, value in estimates.items():
        form, _, metric = name.partition(":")
        grouped.setdefault(form, {})[metric] = value
    return grouped


def _confusion(outcomes: Iterable[Outcome], labels: tuple[str, ...]) -> ConfusionMatrix:
    cells = Counter((o.label, f"({o.status})" if o.predicted is None else o.predicted) for o in outcomes)
    columns = (*labels, *UNPARSED)
    counts = tuple(tuple(cells[label, column] for column in columns) for label in labels)
    return ConfusionMatrix(rows=labels, columns=columns, counts=counts)
