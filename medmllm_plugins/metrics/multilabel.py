"""Multi-label sets: one yes/no question a finding, figures for each finding and their means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate
from medmllm_plugins.metrics.outcome_arrays import Tables, score_matrix
from medmllm_plugins.metrics.outcomes import STATUSES, Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.validation import check_outcomes
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

ANSWERS = ("yes", "no")
_MACRO = ("balanced", "macro_f1", "mcc", "auroc", "auprc")


@dataclass(frozen=True, slots=True)
class FindingSummary:
    """One finding.

    Attributes:
        finding: its name.
        n: questions asked about it.
        positives: of these, where it is there.
        metrics: ``sensitivity``, ``specificity``, ``balanced``, ``f1`` (of yes), ``mcc``, ``parsed``, and with label
            scores ``auroc`` and ``auprc`` (of yes); values NaN where it is never, or always, there.
    """

    finding: str
    n: int
    positives: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class FindingsSummary:
    """All figures of a multi-label data set; intervals are over the same resamples of groups.

    Attributes:
        findings: in class order.
        n: questions in all.
        n_documents: documents.
        n_groups: groups they fall into.
        metrics: ``accuracy`` (share of right answers among all questions), ``parsed``, and means over the findings
            that are there in some documents and not in others: ``balanced``, ``macro_f1``, ``mcc``, ``auroc``,
            ``auprc``.
        exact_match: share of documents all of whose findings are answered rightly.
        defined: number of findings the means run over.
        always_no: accuracy of answering no to every question.
        per_finding: one entry a finding.
        statuses: number of answers of each status.
        resamples: bootstrap resamples drawn.
        seed: of the random generator.
    """

    findings: tuple[str, ...]
    n: int
    n_documents: int
    n_groups: int
    metrics: dict[str, Estimate]
    exact_match: Estimate
    defined: int
    always_no: float
    per_finding: tuple[FindingSummary, ...]
    statuses: dict[str, int]
    resamples: int
    seed: int

    def headline(self) -> str:
        """The one sentence to read."""
        accuracy, balanced = self.metrics["accuracy"], self.metrics["balanced"]
        return (
            f"accuracy {accuracy.percent()} over {self.n} yes/no questions (always no: {self.always_no:.1%}), macro "
            f"balanced accuracy {balanced.percent()} over {self.defined} findings, "
            f"{self.metrics['parsed'].value:.1%} parsed, {self.n_documents} documents, {self.n_groups} groups."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN."""
        return {
            "labels": list(self.findings),
            "kind": "multilabel",
            "n": self.n,
            "n_documents": self.n_documents,
            "n_groups": self.n_groups,
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "exact_match": self.exact_match.to_dict(),
            "findings_in_means": self.defined,
            "baselines": {"always_no": {"accuracy": self.always_no, "balanced": 0.5}},
            "per_finding": [
                {
                    "finding": one.finding,
                    "n": one.n,
                    "positives": one.positives,
                    **{name: found.to_dict() for name, found in one.metrics.items()},
                }
                for one in self.per_finding
            ],
            "statuses": dict(self.statuses),
            "interval": "95 % percentile, cluster bootstrap over groups",
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``<stem>.metrics.json``, ``.metrics.csv`` and ``.per_finding.csv``, each whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = list(self.per_finding[0].metrics)
        ends = ("", "_low", "_high")
        texts = {
            "metrics.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            "metrics.csv": csv_text(
                ["metric", "value", "low", "high"],
                [
                    [name, *found.to_dict().values()]
                    for name, found in {**self.metrics, "exact_match": self.exact_match}.items()
                ],
            ),
            "per_finding.csv": csv_text(
                ["finding", "n", "positives", *(f"{name}{end}" for name in names for end in ends)],
                [
                    [
                        one.finding,
                        one.n,
                        one.positives,
                        *(value for name in names for value in one.metrics[name].to_dict().values()),
                    ]
                    for one in self.per_finding
                ],
            ),
        }
        for name, text in texts.items():
            write_whole(folder / f"{stem}.{name}", text)
        return [folder / f"{stem}.{name}" for name in texts]


class _Finding:
    """The questions about one finding, evaluated under any weights of the documents."""

    def __init__(self, outcomes: Sequence[Outcome], rows: Ints) -> None:
        """Sort them once; ``rows`` is the index of each outcome's document."""
        index = {"yes": 0, "no": 1, None: 2}
        self.truth: Ints = np.array([index[outcome.label] for outcome in outcomes], dtype=np.intp)
        answer: Ints = np.array([index[outcome.predicted] for outcome in outcomes], dtype=np.intp)
        self._tables = Tables(self.truth, answer, 2, rows=rows)
        scores = score_matrix(outcomes)
        # Only yes is ranked: that of no has the same area, and its precision is of no interest.
        self._ranking = None if scores is None else MacroRanking(scores, self.truth, only=0, rows=rows)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Metrics under document weights (n, B); (B,) each, NaN unless yes and no both occur."""
        counts = self._tables(weights)
        both = (counts.sum(-1) > 0).all(-1)
        found = {
            "sensitivity": classification.sensitivity(counts)[:, 0],
            "specificity": classification.sensitivity(counts)[:, 1],
            "balanced": classification.balanced_accuracy(counts),
            "f1": classification.f1(counts)[:, 0],
            "mcc": classification.matthews(counts),
            "parsed": classification.parsed_share(counts),
        }
        if self._ranking is not None:
            found["auroc"], found["auprc"] = self._ranking(weights)
        kept = {name: values if name == "parsed" else np.where(both, values, np.nan) for name, values in found.items()}
        return {**kept, "right": counts[:, 0, 0] + counts[:, 1, 1], "asked": counts.sum((-2, -1))}


def summarise_findings(
    outcomes: Sequence[Outcome], findings: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> FindingsSummary:
    """Compute figures for each finding and over all of them.

    A group brings all of its documents, and a document all of its questions, so that intervals respect that the
    answers about one patient hang together.

    Args:
        outcomes: one a question, labels yes and no, ``finding`` set.
        findings: the findings, in class order.
        resamples: bootstrap resamples.
        seed: of the random generator.

    Raises:
        DataError: there are none, an id occurs twice, or a finding is unknown.
    """
    check_outcomes(outcomes, ANSWERS)
    if strangers := sorted({str(outcome.finding) for outcome in outcomes} - set(findings)):
        raise DataError(f"Expected every finding to be one of {list(findings)}, found {strangers}.")
    ordered = sorted(outcomes, key=lambda outcome: outcome.id)
    document = [outcome.document or outcome.id for outcome in ordered]
    place = {name: index for index, name in enumerate(sorted(set(document)))}
    rows: Ints = np.array([place[name] for name in document], dtype=np.intp)
    group_of = {name: outcome.group for name, outcome in zip(document, ordered, strict=True)}
    groups = {name: index for index, name in enumerate(sorted(set(group_of.values())))}
    group: Ints = np.array([groups[group_of[name]] for name in place], dtype=np.intp)

    questions: dict[str, list[int]] = {name: [] for name in findings}
    for index, outcome in enumerate(ordered):
        questions[str(outcome.finding)].append(index)
    asked = [name for name in findings if questions[name]]
    parts = [_Finding([ordered[index] for index in questions[name]], rows[questions[name]]) for name in asked]
    wrong = rows[[outcome.label != outcome.predicted for outcome in ordered]]
    whole: Floats = np.where(np.bincount(wrong, minlength=len(place)) == 0, 1.0, 0.0)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        each = [part(weights) for part in parts]
        right, total = (np.sum([found[name] for found in each], axis=0) for name in ("right", "asked"))
        parsed = np.sum([found["parsed"] * found["asked"] for found in each], axis=0)
        result = {
            f"{index}:{name}": values
            for index, found in enumerate(each)
            for name, values in found.items()
            if name not in ("right", "asked")
        }
        result["accuracy"] = classification.ratio(right, total)
        result["parsed"] = classification.ratio(parsed, total)
        result["exact_match"] = classification.ratio(whole @ weights, weights.sum(0))
        for name in _MACRO:
            source = "f1" if name == "macro_f1" else name
            if all(source in found for found in each):
                values = np.stack([found[source] for found in each])
                there = ~np.isnan(values)
                mean = classification.ratio(np.where(there, values, 0.0).sum(0), there.sum(0).astype(np.float64))
                result[name] = mean
        return result

    values, drawn = bootstrap(evaluate, group, resamples=resamples, seed=seed)

    def overall(name: str) -> Estimate:
        return estimate(float(values[name]), drawn[name], groups=len(groups))

    per_finding = tuple(
        FindingSummary(
            finding=name,
            n=len(part.truth),
            positives=int((part.truth == 0).sum()),
            metrics={key.partition(":")[2]: overall(key) for key in values if key.partition(":")[0] == str(index)},
        )
        for index, (name, part) in enumerate(zip(asked, parts, strict=True))
    )
    statuses = Counter(outcome.status for outcome in ordered)
    return FindingsSummary(
        findings=tuple(asked),
        n=len(ordered),
        n_documents=len(place),
        n_groups=len(groups),
        metrics={name: overall(name) for name in ("accuracy", *_MACRO, "parsed") if name in values},
        exact_match=overall("exact_match"),
        defined=sum(0 < one.positives < one.n for one in per_finding),
        always_no=sum(outcome.label == "no" for outcome in ordered) / len(ordered),
        per_finding=per_finding,
        statuses={status: statuses[status] for status in STATUSES},
        resamples=resamples,
        seed=seed,
    )
