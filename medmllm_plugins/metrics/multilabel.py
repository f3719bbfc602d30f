"""Multi-label data sets: one yes/no question for each finding, metrics of each finding and their means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap,
    effective_groups,
    estimate_metrics,
    size_inflation,
)
from medmllm_plugins.metrics.outcome_arrays import Tables, score_matrix
from medmllm_plugins.metrics.outcomes import STATUSES, Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.summary import INTERVAL, METRICS_FORMAT
from medmllm_plugins.metrics.validation import check_outcomes
from medmllm_plugins.utils.record import Record, VersionedRecord

ANSWERS: Final = ("yes", "no")
_MACRO: Final = ("balanced", "macro_f1", "mcc", "auroc", "auprc")


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingSummary(Record):
    """The questions about one finding; metrics are NaN where it is never present, or always.

    Attributes:
        finding: its name.
        n: questions about it.
        positives: number of documents in which it is present.
        sensitivity: share of these documents answered with yes.
        specificity: share of the other documents answered with no.
        balanced: balanced accuracy.
        f1: F1 of yes.
        mcc: Matthews correlation.
        parsed: share of parsed answers.
        auroc: AUROC of the label scores; ``null`` without scores.
        auprc: average precision of yes; ``null`` without scores.
    """

    finding: str
    n: int
    positives: int
    sensitivity: Estimate
    specificity: Estimate
    balanced: Estimate
    f1: Estimate
    mcc: Estimate
    parsed: Estimate
    auroc: Estimate | None = None
    auprc: Estimate | None = None

    def metrics(self) -> dict[str, Estimate]:
        """Return the metrics by name, those of label scores where there are any."""
        values = {name: getattr(self, name) for name in self.__slots__[3:]}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsSummary(VersionedRecord):
    """All metrics of a multi-label task; intervals are over the same resamples of groups.

    Attributes:
        labels: the findings in class order.
        kind: ``multilabel``.
        n: questions.
        n_documents: documents.
        n_groups: groups they belong to.
        metrics: ``accuracy`` (share of correct answers among all questions), ``parsed``, and means over the findings
            that are present in some documents and absent in others: ``balanced``, ``macro_f1``, ``mcc``, ``auroc``,
            ``auprc``.
        exact_match: share of documents with all findings answered correctly.
        findings_in_means: number of findings that the means run over.
        baselines: scores of answering without the image, by baseline and metric.
        per_finding: one entry for each finding.
        statuses: number of answers of each status.
        interval: how intervals were computed.
        resamples: bootstrap resamples drawn.
        seed: seed of the resamples.
    """

    FORMAT: ClassVar[str] = METRICS_FORMAT

    labels: tuple[str, ...]
    kind: str = "multilabel"
    n: int
    n_documents: int
    n_groups: int
    metrics: Mapping[str, Estimate]
    exact_match: Estimate
    findings_in_means: int
    baselines: Mapping[str, Mapping[str, float]]
    per_finding: tuple[FindingSummary, ...]
    statuses: Mapping[str, int]
    interval: str = INTERVAL
    resamples: int
    seed: int

    @property
    def always_no(self) -> float:
        """Accuracy of answering no to every question."""
        return self.baselines["always_no"]["accuracy"]

    def headline(self) -> str:
        """Return one sentence: accuracy, the baseline it has to exceed, and how many answers were parsed."""
        accuracy, balanced = self.metrics["accuracy"], self.metrics["balanced"]
        return (
            f"accuracy {accuracy.percent()} over {self.n} yes/no questions (always no: {self.always_no:.1%}), macro "
            f"balanced accuracy {balanced.percent()} over {self.findings_in_means} findings, "
            f"{self.metrics['parsed'].value:.1%} parsed, {self.n_documents} documents, {self.n_groups} groups."
        )


class _FindingEvaluator:
    """The questions about one finding, evaluated under any weights of the documents."""

    def __init__(self, outcomes: Sequence[Outcome], rows: Ints) -> None:
        """Sort them once; ``rows`` is the index of each outcome's document."""
        index = {"yes": 0, "no": 1, None: 2}
        self.truth: Ints = np.array([index[outcome.label] for outcome in outcomes], dtype=np.intp)
        answer: Ints = np.array([index[outcome.predicted] for outcome in outcomes], dtype=np.intp)
        self._tables = Tables(self.truth, answer, 2, rows=rows)
        scores = score_matrix(outcomes)
        # Only yes is ranked: no has the same AUROC, and its average precision is of no interest.
        self.ranking = None if scores is None else MacroRanking(scores, self.truth, only=0, rows=rows)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return metrics under document weights (n, B): (B,) each, NaN unless yes and no both occur."""
        counts = self._tables(weights)
        both = (counts.sum(-1) > 0).all(-1)
        values = {
            "sensitivity": classification.sensitivity(counts)[:, 0],
            "specificity": classification.sensitivity(counts)[:, 1],
            "balanced": classification.balanced_accuracy(counts),
            "f1": classification.f1(counts)[:, 0],
            "mcc": classification.matthews(counts),
            "parsed": classification.parsed_share(counts),
        }
        if self.ranking is not None:
            values["auroc"], values["auprc"] = self.ranking(weights)
        defined = {name: value if name == "parsed" else np.where(both, value, np.nan) for name, value in values.items()}
        return {**defined, "correct": counts[:, 0, 0] + counts[:, 1, 1], "questions": counts.sum((-2, -1))}


class _Evaluator:
    """All questions of a multi-label data set, evaluated under any weights of its documents.

    Attributes:
        findings: the findings that were asked about, in class order.
        parts: the questions about each of them.
        n_documents: documents.
        group: (n,) index of each document's group.
        inflation: factor of variances, from the questions that were answered correctly.
        inflation_of: those of AUROCs.
    """

    def __init__(self, outcomes: Sequence[Outcome], findings: Sequence[str]) -> None:
        """Arrange the outcomes, which are sorted by id."""
        documents = [outcome.document or outcome.id for outcome in outcomes]
        row_of = {name: row for row, name in enumerate(sorted(set(documents)))}
        rows: Ints = np.array([row_of[name] for name in documents], dtype=np.intp)
        group_of = {name: outcome.group for name, outcome in zip(documents, outcomes, strict=True)}
        group_index = {name: index for index, name in enumerate(sorted(set(group_of.values())))}
        self.n_documents = len(row_of)
        self.group: Ints = np.array([group_index[group_of[name]] for name in row_of], dtype=np.intp)
        questions: dict[str, list[int]] = {name: [] for name in findings}
        for index, outcome in enumerate(outcomes):
            questions[str(outcome.finding)].append(index)
        self.findings = [name for name in findings if questions[name]]
        self.parts = [
            _FindingEvaluator([outcomes[index] for index in questions[name]], rows[questions[name]])
            for name in self.findings
        ]
        is_wrong = np.array([outcome.label != outcome.predicted for outcome in outcomes])
        self.inflation = float(size_inflation(1.0 - is_wrong, self.group[rows]))
        self.inflation_of = {
            f"{index}:auroc": part.ranking.inflation(self.group[rows[questions[name]]])
            for index, (name, part) in enumerate(zip(self.findings, self.parts, strict=True))
            if part.ranking is not None
        }
        if self.inflation_of:
            self.inflation_of["auroc"] = float(np.mean(list(self.inflation_of.values())))
        wrong = rows[is_wrong]
        self._all_correct: Floats = np.where(np.bincount(wrong, minlength=len(row_of)) == 0, 1.0, 0.0)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return overall metrics, and ``index:metric`` of each finding, under document weights (n, B): (B,) each."""
        each = [part(weights) for part in self.parts]
        correct, questions = (np.sum([values[name] for values in each], axis=0) for name in ("correct", "questions"))
        parsed = np.sum([values["parsed"] * values["questions"] for values in each], axis=0)
        result = {
            f"{index}:{name}": value
            for index, values in enumerate(each)
            for name, value in values.items()
            if name not in ("correct", "questions")
        }
        result["accuracy"] = classification.ratio(correct, questions)
        result["parsed"] = classification.ratio(parsed, questions)
        result["exact_match"] = classification.ratio(self._all_correct @ weights, weights.sum(0))
        for name in _MACRO:
            source = "f1" if name == "macro_f1" else name
            if all(source in values for values in each):
                stacked = np.stack([values[source] for values in each])
                defined = ~np.isnan(stacked)
                totals = np.where(defined, stacked, 0.0).sum(0)
                result[name] = classification.ratio(totals, defined.sum(0).astype(np.float64))
        return result


def summarise_findings(
    outcomes: Sequence[Outcome], findings: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> FindingsSummary:
    """Compute metrics for each finding and over all of them, from one outcome (yes or no) for each question.

    A group brings all of its documents, and a document all of its questions, so that intervals respect that answers
    about one patient are not independent.

    Raises:
        DataError: there are none, an id occurs twice, or a finding is unknown.
    """
    check_outcomes(outcomes, ANSWERS)
    if strangers := sorted({str(outcome.finding) for outcome in outcomes} - set(findings)):
        raise DataError(f"Expected every finding to be one of {list(findings)}, got {strangers}.")
    ordered = sorted(outcomes, key=lambda outcome: outcome.id)
    evaluator = _Evaluator(ordered, findings)
    values, resampled = bootstrap(evaluator, evaluator.group, resamples=resamples, seed=seed)
    estimates = estimate_metrics(
        values,
        resampled,
        groups=effective_groups(evaluator.group),
        inflation=evaluator.inflation,
        inflation_of=evaluator.inflation_of,
    )
    per_finding = tuple(
        FindingSummary(
            finding=name,
            n=len(part.truth),
            positives=int((part.truth == 0).sum()),
            **{key.partition(":")[2]: value for key, value in estimates.items() if key.startswith(f"{index}:")},
        )
        for index, (name, part) in enumerate(zip(evaluator.findings, evaluator.parts, strict=True))
    )
    statuses = Counter(outcome.status for outcome in ordered)
    always_no = sum(outcome.label == "no" for outcome in ordered) / len(ordered)
    return FindingsSummary(
        labels=tuple(evaluator.findings),
        n=len(ordered),
        n_documents=evaluator.n_documents,
        n_groups=int(np.unique(evaluator.group).size),
        metrics={name: estimates[name] for name in ("accuracy", *_MACRO, "parsed") if name in estimates},
        exact_match=estimates["exact_match"],
        findings_in_means=sum(0 < finding.positives < finding.n for finding in per_finding),
        baselines={"always_no": {"accuracy": always_no, "balanced": 0.5}},
        per_finding=per_finding,
        statuses={status: statuses[status] for status in STATUSES},
        resamples=resamples,
        seed=seed,
    )
