"""The verdict on a model: its accuracy, what guessing and a reference classifier reach, and supported failure modes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medmllm_plugins.metrics.guessing import GUESSES
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
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
from medmllm_plugins.results.report_records import ReferenceRecord, VerdictRecord
from medmllm_plugins.results.scoring import unreadable_warning
from medmllm_plugins.utils.json_values import clean


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
    def answers_match_reference(self) -> bool:
        """Whether the answers are at least as accurate as a reference classifier that is better than guessing."""
        return _matches(self.reference)

    @property
    def unit(self) -> str:
        """Noun for what the questions are about."""
        if self.result.multilabel or self.result.task.varied:
            return "question"
        return self.document_unit

    @property
    def document_unit(self) -> str:
        """Noun for a document."""
        return "volume" if self.dataset.spec is not None and self.dataset.spec.dimensions == 3 else "image"

    @property
    def parsed(self) -> float:
        """Share of the answers that could be read; NaN where it is not known."""
        return self.result.metrics.get("parsed", UNKNOWN).value

    @property
    def group_unit(self) -> str:
        """Noun for a group of documents: patient, if the groups are named so."""
        groups = {outcome.group.casefold()[:7] for outcome in self.result.task.outcomes}
        return "patient" if groups == {"patient"} else "group"

    def record(self) -> VerdictRecord:
        """Return the verdict as ``report.json`` has it."""
        reference, diagnosis = self.reference, self.diagnosis
        apart = reference.name and not reference.compared
        return VerdictRecord(
            model=self.subject.label,
            task=self.result.task.name,
            sentence=self.sentence,
            unreadable=self.unread,
            accuracy=self.accuracy,
            questions=self.questions,
            guess=self.guess.name,
            guess_accuracy=self.guess.accuracy.value,
            difference_from_guess=self.guess.difference,
            difference_from_guess_questions=self.guess.shared,
            reference=reference.name if reference.compared else "",
            reference_accuracy=reference.shared_accuracy if reference.compared else math.nan,
            difference_from_reference=reference.difference if reference.compared else UNKNOWN,
            difference_from_reference_questions=reference.shared if reference.compared else 0,
            reference_not_compared=(
                ReferenceRecord(name=reference.name, accuracy=reference.accuracy, reason=reference.reason)
                if apart
                else None
            ),
            probed=self.probed,
            named=diagnosis.named,
            readable_until=diagnosis.readable_until,
            candidates=tuple(diagnosis.candidates),
            reasons=tuple(diagnosis.reasons),
            supported=tuple(effect.mode for effect in diagnosis.supported),
            undecided=tuple(diagnosis.undecided),
            ruled_out=tuple(diagnosis.ruled_out),
        )


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


def _matches(reference: BaselineComparison) -> bool:
    gap = reference.difference.value
    return reference.compared and reference.informative and known(gap) and gap >= 0


def _consistent(diagnosis: Diagnosis, reference: BaselineComparison) -> Diagnosis:
    """Return a diagnosis that names nothing if the answers match the reference classifier.

    The diagnosis follows the same rule, but may be older than the reference classifier of the report.
    """
    if not _matches(reference) or diagnosis.patched or diagnosis.named is None:
        return diagnosis
    reason = text("verdict.txt.jinja", "matches_reference")
    return replace(diagnosis, named=None, readable_until="", candidates=(), reasons=(reason,))


def _verdict(dataset: DatasetRuns, result: TaskResult, differences: Mapping[str, PairedDifference]) -> Verdict:
    probed, probing = _probing_of(dataset, result.subject)
    name, accuracy = result.guess
    summary = result.task.summary
    reference = BaselineComparison() if result.subject.reference else _reference(dataset, result, probing, differences)
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
        reference=reference,
        probed=probed,
        probe_task=inspection_task(result.task.name.partition(":")[0], "probe"),
        diagnosis=_consistent(probing.diagnosis, reference) if probing else Diagnosis(effects=()),
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
        informative = not known(probing.reference.low) or probing.reference.low > probing.majority
        name, accuracy = probing.reference_name, probing.reference
        return BaselineComparison(name, accuracy, gap, accuracy.value, informative=informative)
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
    """Return the plainest task of a subject that has probes, and its probes; those with a reference first."""
    probed = [(result.task, probing) for result, probing in dataset.probed() if result.subject is subject]
    if not probed:
        return "", None
    task, probing = min(probed, key=lambda pair: (not pair[0].plain, pair[0].name, not known(pair[1].reference)))
    return task.name, probing
