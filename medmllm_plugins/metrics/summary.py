"""From scored documents to one data set's figures: metrics, intervals, baselines and tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.calibration import Bin, Calibration
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.guessing import baselines, majority_class
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate, number
from medmllm_plugins.metrics.label_scores import LabelScores, forms
from medmllm_plugins.metrics.outcome_arrays import OVERALL, SCORED, Distinct, Tables, score_matrix
from medmllm_plugins.metrics.outcomes import STATUSES, UNPARSED, Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.validation import check_options, check_outcomes
from medmllm_plugins.utils.atomic_files import csv_text, write_whole


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One class against all others.

    Attributes:
        label: the class.
        n: documents of this class.
        n_groups: groups with at least one document of this class.
        sensitivity: share of its documents answered with it; value NaN where it has none.
        specificity: share of the other documents answered with another class (so an answer that was not parsed counts
            against it); value NaN where there are none.
        precision: NaN where the class was never answered.
        f1: NaN where the class is neither true nor answered anywhere.
    """

    label: str
    n: int
    n_groups: int
    sensitivity: Estimate
    specificity: Estimate
    precision: float
    f1: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN."""
        return {
            "label": self.label,
            "n": self.n,
            "n_groups": self.n_groups,
            "sensitivity": self.sensitivity.to_dict(),
            "specificity": self.specificity.to_dict(),
            "precision": number(self.precision),
            "f1": number(self.f1),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of one data set. Every interval is a 95 % percentile interval over the same resamples of groups.

    Attributes:
        labels: the K classes in order.
        positive: the positive class, if the data set has one.
        n: documents.
        n_groups: groups they fall into.
        metrics: ``accuracy``, ``balanced``, ``macro_f1``, ``mcc``, ``parsed``; ``kappa`` where the classes are ordered;
            and where every document has scores and at least two classes occur, ``auroc``, ``auprc`` (average
            precision), ``ece`` (expected calibration error) and ``brier``.
        accuracy_on_parsed: value NaN where no answer was parsed.
        sensitivity: of ``positive``; ``None`` if there is no such class.
        specificity: likewise.
        baselines: scores of blind answers, by baseline and metric.
        majority: the class the majority baseline answers.
        per_class: one entry a class, in class order.
        confusion: K rows (true) of K + 3 counts: answers of each class, then ambiguous, out of list, refusal.
        statuses: number of answers of each status, all four named.
        reliability: the reliability diagram of the label scores; empty without them.
        label_scores: for each form of the label scores (:mod:`medmllm_plugins.metrics.label_scores`), the figures of
            answering with the label that scores highest; empty without scores.
        resamples: bootstrap resamples drawn.
        seed: of the random generator.
    """

    labels: tuple[str, ...]
    positive: str | None
    n: int
    n_groups: int
    metrics: dict[str, Estimate]
    accuracy_on_parsed: Estimate
    sensitivity: Estimate | None
    specificity: Estimate | None
    baselines: dict[str, dict[str, float]]
    majority: str
    per_class: tuple[ClassSummary, ...]
    confusion: tuple[tuple[int, ...], ...]
    statuses: dict[str, int]
    reliability: tuple[Bin, ...]
    label_scores: dict[str, dict[str, Estimate]]
    resamples: int
    seed: int

    def headline(self) -> str:
        """The one sentence to read: accuracy, what it has to beat, and how much was parsed."""
        accuracy = self.metrics["accuracy"]
        return (
            f"accuracy {accuracy.percent()} (majority class {self.baselines['majority_class']['accuracy']:.1%}), "
            f"balanced accuracy {self.metrics['balanced'].percent()}, "
            f"{self.metrics['parsed'].value:.1%} of {self.n} answers parsed, {self.n_groups} groups."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN."""
        return {
            "labels": list(self.labels),
            "positive": self.positive,
            "n": self.n,
            "n_groups": self.n_groups,
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "accuracy_on_parsed": self.accuracy_on_parsed.to_dict(),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
            "specificity": None if self.specificity is None else self.specificity.to_dict(),
            "baselines": {name: dict(scores) for name, scores in self.baselines.items()},
            "majority": self.majority,
            "per_class": [found.to_dict() for found in self.per_class],
            "confusion": {
                "rows": list(self.labels),
                "columns": [*self.labels, *UNPARSED],
                "counts": [list(row) for row in self.confusion],
            },
            "statuses": dict(self.statuses),
            "reliability": [found.to_dict() for found in self.reliability],
            "label_scores": {
                form: {name: found.to_dict() for name, found in metrics.items()}
                for form, metrics in self.label_scores.items()
            },
            "interval": "95 % percentile, cluster bootstrap over groups",
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write the figures as files, each whole or not at all; an undefined number is an empty CSV cell.

        Args:
            folder: made if it is not there.
            stem: first part of the file names.

        Returns:
            ``<stem>.metrics.json``, ``<stem>.metrics.csv``, ``<stem>.per_class.csv`` and ``<stem>.confusion.csv``; with
            label scores ``<stem>.label_scores.csv`` too.

        Raises:
            OptionError: ``stem`` is not a plain file name.
            OSError: the folder cannot be written.
        """
        if not stem or Path(stem).name != stem:
            raise OptionError(f"Expected argument `stem` to be a plain file name without folders, but got {stem!r}.")
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "metrics.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            "metrics.csv": self._metrics_csv(),
            "per_class.csv": self._per_class_csv(),
            "confusion.csv": self._confusion_csv(),
        }
        if self.label_scores:
            texts["label_scores.csv"] = self._label_scores_csv()
        paths = []
        for name, text in texts.items():
            paths.append(folder / f"{stem}.{name}")
            write_whole(paths[-1], text)
        return paths

    def _metrics_csv(self) -> str:
        estimates: dict[str, Estimate | None] = {
            **self.metrics,
            "accuracy_on_parsed": self.accuracy_on_parsed,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
        }
        return csv_text(
            ["metric", "value", "low", "high", *self.baselines],
            (
                [name, *found.to_dict().values(), *(scores.get(name) for scores in self.baselines.values())]
                for name, found in estimates.items()
                if found is not None
            ),
        )

    def _per_class_csv(self) -> str:
        ends = ("", "_low", "_high")
        return csv_text(
            [
                "label",
                "n",
                "n_groups",
                *(f"sensitivity{end}" for end in ends),
                *(f"specificity{end}" for end in ends),
                "precision",
                "f1",
            ],
            (
                [
                    found.label,
                    found.n,
                    found.n_groups,
                    *found.sensitivity.to_dict().values(),
                    *found.specificity.to_dict().values(),
                    number(found.precision),
                    number(found.f1),
                ]
                for found in self.per_class
            ),
        )

    def _label_scores_csv(self) -> str:
        return csv_text(
            ["form", "metric", "value", "low", "high"],
            (
                [form, name, *found.to_dict().values()]
                for form, metrics in self.label_scores.items()
                for name, found in metrics.items()
            ),
        )

    def _confusion_csv(self) -> str:
        return csv_text(
            ["true", *self.labels, *UNPARSED],
            ([label, *row] for label, row in zip(self.labels, self.confusion, strict=True)),
        )


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

    All metrics are computed on the same resamples of groups, so their intervals can be read side by side. In a
    resample, means over classes run over the classes that occur in it, and a resample on which a metric is not defined
    is left out of that metric's interval. An interval needs two groups to resample: with one group in all (or, for
    the sensitivity and specificity of a class, one group holding the documents in question) its ends are NaN, ``None``
    in JSON. Where the metric is the same in every group, as at accuracy 1, the interval has no width, a known limit of
    the percentile bootstrap.

    Args:
        outcomes: one a document, in any order; the order changes nothing.
        labels: the K >= 2 classes; their order is that of ``Outcome.scores`` and of all tables.
        positive: the class whose sensitivity and specificity stand at the top level. For two classes it does not touch
            the AUROC, which is the same for either.
        kind: ``"ordinal"`` where the order of ``labels`` is that of grades; then ``kappa`` is among the metrics.
        resamples: bootstrap resamples.
        seed: of the random generator; same seed, same intervals.

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
    class_index = {label: k for k, label in enumerate(labels)}
    group_index = {group: g for g, group in enumerate(sorted({outcome.group for outcome in ordered}))}
    classes, groups = len(labels), len(group_index)
    truth: Ints = np.array([class_index[outcome.label] for outcome in ordered], dtype=np.intp)
    answer: Ints = np.array(
        [classes if outcome.predicted is None else class_index[outcome.predicted] for outcome in ordered],
        dtype=np.intp,
    )
    group: Ints = np.array([group_index[outcome.group] for outcome in ordered], dtype=np.intp)

    overall_metrics = {**OVERALL, "kappa": classification.quadratic_kappa} if kind == "ordinal" else OVERALL
    scores = score_matrix(ordered)
    ranked = None if scores is None or np.unique(truth).size < 2 else MacroRanking(scores, truth)
    calibration = None if scores is None or ranked is None else Calibration(scores, truth)

    answers = {
        form: matrix.argmax(1).astype(np.intp)
        for form, matrix in (forms(ordered) if calibration is not None else {}).items()
    }
    kinds = Distinct(truth, answer, *answers.values())
    tables = Tables(kinds.of(truth), kinds.of(answer), classes)
    by_form = LabelScores({form: kinds.of(column) for form, column in answers.items()}, kinds.of(truth), classes)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        """Every metric under document weights of shape (n, B): (B,) arrays, those by class (B, K)."""
        alike = kinds(weights)
        counts = tables(alike)
        found = {name: metric(counts) for name, metric in overall_metrics.items()}
        if ranked is not None and calibration is not None:
            found["auroc"], found["auprc"] = ranked(weights)
            found["ece"], found["brier"] = calibration(weights)
            found |= by_form(alike, found["auroc"])
        found["accuracy_on_parsed"] = classification.accuracy_on_parsed(counts)
        found["sensitivity"] = classification.sensitivity(counts)
        found["specificity"] = classification.specificity(counts)
        return found

    values, resampled = bootstrap(evaluate, group, resamples=resamples, seed=seed, cells=classes * (classes + 1))

    def overall(name: str, rests_on: int) -> Estimate:
        return estimate(float(values[name]), resampled[name], groups=rests_on)

    def of_class(name: str, k: int, rests_on: int) -> Estimate:
        return estimate(float(values[name][k]), resampled[name][:, k], groups=rests_on)

    counts = tables(kinds(np.ones((len(ordered), 1))))[0]
    support = counts.sum(1)
    precision, f1 = classification.precision(counts), classification.f1(counts)
    per_class = []
    for k, label in enumerate(labels):
        groups_with, groups_with_others = np.unique(group[truth == k]).size, np.unique(group[truth != k]).size
        per_class.append(
            ClassSummary(
                label=label,
                n=int(support[k]),
                n_groups=groups_with,
                sensitivity=of_class("sensitivity", k, groups_with),
                specificity=of_class("specificity", k, groups_with_others),
                precision=float(precision[k]),
                f1=float(f1[k]),
            )
        )
    chosen = None if positive is None else per_class[class_index[positive]]
    statuses = Counter(outcome.status for outcome in ordered)
    parsed_groups = np.unique(group[answer < classes]).size
    return Summary(
        labels=labels,
        positive=positive,
        n=len(ordered),
        n_groups=groups,
        metrics={name: overall(name, groups) for name in (*overall_metrics, *SCORED) if name in values},
        accuracy_on_parsed=overall("accuracy_on_parsed", parsed_groups),
        sensitivity=None if chosen is None else chosen.sensitivity,
        specificity=None if chosen is None else chosen.specificity,
        baselines=baselines(support),
        majority=labels[majority_class(support)],
        per_class=tuple(per_class),
        confusion=_confusion(ordered, labels),
        statuses={status: statuses[status] for status in STATUSES},
        reliability=() if calibration is None else calibration.table(),
        label_scores=_by_form({name: overall(name, groups) for name in values if ":" in name}),
        resamples=resamples,
        seed=seed,
    )


def _by_form(found: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    grouped: dict[str, dict[str, Estimate]] = {}
    for name, one in found.items():
        form, _, metric = name.partition(":")
        grouped.setdefault(form, {})[metric] = one
    return grouped


def _confusion(outcomes: Iterable[Outcome], labels: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Counts with a column for each way of not being parsed."""
    cells = Counter((o.label, f"({o.status})" if o.predicted is None else o.predicted) for o in outcomes)
    return tuple(tuple(cells[label, column] for column in (*labels, *UNPARSED)) for label in labels)
