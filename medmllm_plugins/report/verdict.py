"""The verdict on a model: its accuracy, what guessing and a reference classifier reach, and supported failure modes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known, number
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.prompts.task_names import inspection_task
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import (
    NO_DIFFERENCE,
    Key,
    Pair,
    PairedDifference,
    correct_rows,
    mismatch,
    paired_differences,
    row_groups,
    row_key,
)
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.probe_records import Diagnosis, ProbeAnalysis
from medmllm_plugins.results.scoring import unreadable_warning
from medmllm_plugins.utils.json_values import clean

GUESSES: Final = {
    "majority_class": "always guessing the most common class",
    "always_no": "always answering no",
}
"""Constant answers by their names in the metrics."""


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """A model compared with a constant guess or with a reference classifier.

    Attributes:
        name: name of the baseline; empty without one.
        difference: model minus baseline, paired; unknown if the two cannot be paired.
        shared_accuracy: its accuracy over the questions that both answered, which the difference is over.
        obstacle: why it is not comparable with the model, a code of the macro ``obstacle``; empty if it is.
        informative: whether it is better than guessing; a reference classifier that is not has no value as a reference.
    """

    name: str = ""
    accuracy: Estimate = UNKNOWN
    difference: Estimate = UNKNOWN
    shared_accuracy: float = math.nan
    shared: int = 0
    obstacle: str = ""
    informative: bool = True

    @property
    def compared(self) -> bool:
        """Whether there is a baseline that is comparable with the model."""
        return bool(self.name) and not self.obstacle

    @property
    def reason(self) -> str:
        """The obstacle in words; empty without one."""
        return text("verdict.txt.jinja", "obstacle", code=self.obstacle) if self.obstacle else ""

    def reached(self, accuracy: Estimate) -> tuple[Estimate, float]:
        """Return the difference from a model's accuracy and what the baseline reaches on the same questions."""
        if known(self.difference):
            return self.difference, self.shared_accuracy
        difference = Estimate(accuracy.value - self.accuracy.value, math.nan, math.nan)
        return difference, self.accuracy.value


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one model on one data set.

    Attributes:
        probed: the task whose probes it is based on; empty without probes.
        diagnosis: its diagnosis; one without effects if there are no probes.
    """

    subject: Subject
    dataset: DatasetRuns
    result: TaskResult
    accuracy: Estimate
    questions: int
    guess: BaselineComparison
    reference: BaselineComparison
    probed: str
    probe_task: str
    diagnosis: Diagnosis
    unread: str = ""

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return text("verdict.txt.jinja", "verdict", verdict=self)

    @property
    def unit(self) -> str:
        """Noun for what the questions are about."""
        if self.result.multilabel or self.result.task.varied:
            return "question"
        return "volume" if self.dataset.spec is not None and self.dataset.spec.dimensions == 3 else "image"

    @property
    def group_unit(self) -> str:
        """Noun for a group of documents: patient, if the groups are named so."""
        groups = {outcome.group.casefold()[:7] for outcome in self.result.task.outcomes}
        return "patient" if groups == {"patient"} else "group"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        reference = self.reference
        apart = {"name": reference.name, "accuracy": reference.accuracy.to_dict(), "reason": reference.reason}
        compared = {
            "reference_accuracy": number(reference.shared_accuracy),
            "difference_from_reference": reference.difference.to_dict(),
            "difference_from_reference_questions": reference.shared,
        }
        return {
            "model": self.subject.label,
            "task": self.result.task.name,
            "sentence": self.sentence,
            "unreadable": self.unread,
            "accuracy": self.accuracy.to_dict(),
            "questions": self.questions,
            "guess": self.guess.name,
            "guess_accuracy": number(self.guess.accuracy.value),
            "difference_from_guess": self.guess.difference.to_dict(),
            "difference_from_guess_questions": self.guess.shared,
            "reference": reference.name if reference.compared else "",
            **(compared if reference.compared else {}),
            "reference_not_compared": apart if reference.name and not reference.compared else None,
            "probed": self.probed,
            "named": self.diagnosis.named,
            "readable_until": self.diagnosis.readable_until,
            "candidates": list(self.diagnosis.candidates),
            "reasons": list(self.diagnosis.reasons),
            "supported": [effect.mode for effect in self.diagnosis.supported],
            "undecided": list(self.diagnosis.undecided),
            "ruled_out": list(self.diagnosis.ruled_out),
        }


def verdicts(dataset: DatasetRuns) -> list[Verdict]:
    """Return one verdict for each model with metrics on a data set."""
    results = [result for model in dataset.models if (result := dataset.main(model)) is not None]
    differences = paired_differences(_pairs(results, dataset.references))
    return [_verdict(dataset, result, differences) for result in results]


def reference_verdict(dataset: DatasetRuns, result: TaskResult) -> Verdict:
    """Return the verdict on a reference classifier, for a data set without models."""
    return _verdict(dataset, result, paired_differences(_pairs([result], [])))


def _pairs(results: Iterable[TaskResult], references: Sequence[TaskResult]) -> dict[str, Pair]:
    """Pair each result with its constant guess and with the references on the same data, and these with theirs."""
    pairs: dict[str, Pair] = {}
    correct = {id(reference): correct_rows(reference) for reference in references}
    for reference in references:
        pairs[_name(reference)] = (correct[id(reference)], _guessed_rows(reference), row_groups(reference))
    for result in results:
        rows, groups = correct_rows(result), row_groups(result)
        pairs[_name(result)] = (rows, _guessed_rows(result), groups)
        for reference in references:
            if not mismatch(result, reference, by_question=True):
                pairs[_name(result, reference)] = (rows, correct[id(reference)], groups)
    return pairs


def _name(result: TaskResult, reference: TaskResult | None = None) -> str:
    return f"{result.subject.number} {'guess' if reference is None else reference.subject.number}"


def _guessed_rows(result: TaskResult) -> dict[Key, float]:
    """Return 1 for each row that the constant guess gets right, else 0."""
    name, _ = result.guess
    labels = [clean(outcome.label) for outcome in result.task.outcomes]
    if not labels or not name:
        return {}
    answer = "no" if name == "always_no" else _most_common_class(result, labels)
    return {row_key(row): float(label == answer) for row, label in zip(result.task.outcomes, labels, strict=True)}


def _most_common_class(result: TaskResult, labels: Sequence[str]) -> str:
    """Return the most common class of the metrics, since fewer rows may be on record than were scored."""
    summary = result.task.summary
    majority = "" if summary is None or isinstance(summary, FindingsSummary) else summary.majority
    return majority or max(result.task.labels or sorted(set(labels)), key=labels.count)


def _verdict(dataset: DatasetRuns, result: TaskResult, differences: Mapping[str, PairedDifference]) -> Verdict:
    probed, probing = _probing_of(dataset, result.subject)
    name, accuracy = result.guess
    summary = result.task.summary
    return Verdict(
        subject=result.subject,
        dataset=dataset,
        result=result,
        accuracy=result.metrics.get("accuracy", UNKNOWN),
        questions=result.question_count,
        guess=BaselineComparison(
            GUESSES.get(name, ""),
            Estimate(accuracy, math.nan, math.nan),
            *differences.get(_name(result), NO_DIFFERENCE),
        ),
        reference=(
            BaselineComparison() if result.subject.reference else _reference(dataset, result, probing, differences)
        ),
        probed=probed,
        probe_task=inspection_task(result.task.name.partition(":")[0], "probe"),
        diagnosis=probing.diagnosis if probing else Diagnosis(effects=()),
        unread="" if summary is None else unreadable_warning(summary, dataset.spec, result.run.manifest.model),
    )


def _reference(
    dataset: DatasetRuns,
    result: TaskResult,
    probing: ProbeAnalysis | None,
    differences: Mapping[str, PairedDifference],
) -> BaselineComparison:
    """Compare with the best reference classifier that shares questions with a model; else say why there is none."""
    for reference in dataset.references:
        if difference := differences.get(_name(result, reference)):
            accuracy = reference.metrics.get("accuracy", UNKNOWN)
            over_guess = differences.get(_name(reference), NO_DIFFERENCE)[0]
            informative = not known(over_guess.low) or over_guess.low > 0
            return BaselineComparison(reference.subject.label, accuracy, *difference, informative=informative)
    if probing is not None and known(probing.reference):
        # Its run is not among these, but the diagnosis was compared with it.
        gap = Estimate(probing.answer.value - probing.reference.value, math.nan, math.nan)
        return BaselineComparison(probing.reference_name, probing.reference, gap, probing.reference.value)
    for reference in dataset.references:
        accuracy = reference.metrics.get("accuracy", UNKNOWN)
        return BaselineComparison(reference.subject.label, accuracy, obstacle=_obstacle(result, reference))
    return BaselineComparison()


def _obstacle(result: TaskResult, reference: TaskResult) -> str:
    """Return why a reference classifier shares no question with a model."""
    if not reference.task.scored:
        return "no_metrics"
    if code := mismatch(result, reference, by_question=True):
        return code
    if not reference.task.outcomes:
        return "no_reference_answers"
    return "no_shared_questions" if result.task.outcomes else "no_model_answers"


def _probing_of(dataset: DatasetRuns, subject: Subject) -> tuple[str, ProbeAnalysis | None]:
    """Return the plainest task of a subject that has probes, and its probes."""
    probed = [(result.task, probing) for result, probing in dataset.probed() if result.subject is subject]
    if not probed:
        return "", None
    task, probing = min(probed, key=lambda pair: (not pair[0].plain, pair[0].name))
    return task.name, probing
