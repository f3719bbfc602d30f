"""Several run folders as one collection: which models, which data sets, and which run has results of which task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.guessing import constant_guess
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.prompts.protocols import PROTOCOLS
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.subjects import Subject, group_subjects
from medmllm_plugins.report.task_identity import count_shots, question
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.attribution_records import AttributionSummary
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis, SemanticMapping
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.results.run_folders import BLIND, finished_baselines
from medmllm_plugins.results.run_reader import RunFolder, TaskRun, read_run
from medmllm_plugins.results.steering_records import Steering
from medmllm_plugins.utils.json_values import clean


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult:
    """Results of one task of one model, from one run folder."""

    subject: Subject
    run: RunFolder
    task: TaskRun

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """The metrics with their intervals, by name."""
        return {} if self.task.summary is None else self.task.summary.metrics

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data; empty if the manifest has none."""
        return self.task.entry.dataset_fingerprint

    @property
    def multilabel(self) -> bool:
        """Whether each question is about one finding and answered with yes or no."""
        return isinstance(self.task.summary, FindingsSummary) or any(outcome.finding for outcome in self.task.outcomes)

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes; for a multi-label set, the findings that were asked about."""
        if self.multilabel and not isinstance(self.task.summary, FindingsSummary):
            return tuple(dict.fromkeys(clean(outcome.finding) for outcome in self.task.outcomes if outcome.finding))
        return self.task.labels

    @property
    def guess(self) -> tuple[str, float]:
        """Name and accuracy of the best constant answer; an empty name if it is unknown."""
        return constant_guess({} if self.task.summary is None else self.task.summary.baselines)

    @property
    def question_count(self) -> int:
        """Number of questions behind the metrics; without metrics, the number of rows."""
        return (self.task.summary.n if self.task.summary is not None else 0) or len(self.task.outcomes)

    @property
    def group_count(self) -> int | None:
        """Number of groups of documents; ``None`` if it is unknown."""
        return (self.task.summary.n_groups if self.task.summary is not None else 0) or None

    @property
    def exact_match(self) -> Estimate:
        """Share of documents with all findings answered correctly; unknown for other tasks."""
        return self.task.summary.exact_match if isinstance(self.task.summary, FindingsSummary) else UNKNOWN

    @property
    def shots(self) -> int:
        """Number of solved examples before each question."""
        return count_shots(self.run, self.task)

    def question(self, *without: str) -> tuple[str, ...]:
        """Return what identifies the question; see :func:`medmllm_plugins.report.task_identity.question`."""
        return question(self.run, self.task, without)


@dataclass(frozen=True, slots=True, eq=False)
class AttributionRow:
    """The checks of one attribution method at one layer, with its settings where several rows differ only in them."""

    result: TaskResult
    summary: AttributionSummary
    settings: str


@dataclass(frozen=True, slots=True, eq=False)
class DatasetRuns:
    """One data set and all results on it.

    Attributes:
        name: name of the data set.
        spec: its declaration; ``None`` if this installation has none.
        divided: whether the runs used different data, by the fingerprints in their manifests.
    """

    name: str
    title: str
    spec: DatasetSpec | None
    results: tuple[TaskResult, ...]
    divided: bool

    @property
    def subjects(self) -> list[Subject]:
        """Models and reference classifiers with results, models first."""
        subjects = {result.subject.number: result.subject for result in self.results}
        return sorted(subjects.values(), key=lambda subject: (subject.reference, subject.number))

    @property
    def models(self) -> list[Subject]:
        """Subjects that are not reference classifiers."""
        return [subject for subject in self.subjects if not subject.reference]

    def of(self, subject: Subject) -> list[TaskResult]:
        """Return all results of one subject."""
        return [result for result in self.results if result.subject is subject]

    def main(self, subject: Subject) -> TaskResult | None:
        """Return the result that ranks a subject: its plainest question, about all documents if possible."""
        scored = [result for result in self.of(subject) if result.task.scored and result.task.image == "shown"]
        return min(scored, key=_rank) if scored else None

    def main_results(self, *, blind: bool = False) -> list[TaskResult]:
        """Return the main result of each subject, models first; classifiers that see no image where ``blind``."""
        mains = (self.main(subject) for subject in self.subjects if blind or not subject.blind)
        return [result for result in mains if result is not None]

    def counterpart(self, result: TaskResult) -> TaskResult | None:
        """Return the result to compare a varied task or a task without the image with; ``None`` if there is none.

        A task without the image is compared with the same question about the image, and a task that varies order or
        wording with the same question asked once. Other pairs, such as two protocols, would mix two effects.
        """
        if result.task.image != "shown":
            varies: tuple[str, ...] = ("image",)
        else:
            varies = {"order": ("order",), "wording": ("paraphrase",)}.get(result.task.varied, ())
        same = [
            other
            for other in self.of(result.subject)
            if varies
            and other.task.scored
            and other.task.image == "shown"
            and (other.task.plain or result.task.image != "shown")
            and other.question(*varies) == result.question(*varies)
        ]
        return min(same, key=_rank) if same else None

    @property
    def references(self) -> list[TaskResult]:
        """One result of each reference classifier that sees images, by falling accuracy, those without metrics last.

        Whether one is comparable with a model is decided by :func:`medmllm_plugins.report.run_pairs.mismatch`.
        """
        references = [
            self.main(subject) or self.of(subject)[0]
            for subject in self.subjects
            if subject.reference and not subject.blind
        ]

        def rank(result: TaskResult) -> float:
            accuracy = result.metrics.get("accuracy")
            return -accuracy.value if accuracy is not None and known(accuracy) else 1.0

        return sorted(references, key=rank)

    def probed(self) -> list[tuple[TaskResult, ProbeAnalysis]]:
        """Return the results with probes."""
        return [(result, result.task.probing) for result in self.results if result.task.probing is not None]

    def patched(self) -> list[tuple[TaskResult, TwinPatching]]:
        """Return the results with twin patching."""
        return [(result, result.task.patching) for result in self.results if result.task.patching is not None]

    def exchanged(self) -> list[tuple[TaskResult, Interchange]]:
        """Return the results with interchange between documents."""
        return [(result, result.task.interchange) for result in self.results if result.task.interchange is not None]

    def cut(self) -> list[tuple[TaskResult, Knockout]]:
        """Return the results with attention to the image cut."""
        return [(result, result.task.knockout) for result in self.results if result.task.knockout is not None]

    def steered(self) -> list[tuple[TaskResult, Steering]]:
        """Return the results with states pushed along directions of probes."""
        return [(result, result.task.steering) for result in self.results if result.task.steering is not None]

    def intervened(self) -> list[tuple[TaskResult, InterventionResults]]:
        """Return the results with interventions of plugins."""
        return [(result, result.task.interventions) for result in self.results if result.task.interventions is not None]

    def repaired(self) -> list[tuple[TaskResult, RepairStudy]]:
        """Return the results with repairs."""
        return [(result, result.task.repairs) for result in self.results if result.task.repairs is not None]

    def mapped(self) -> list[tuple[TaskResult, SemanticMapping]]:
        """Return the results with a semantic mapping."""
        return [(result, probing.mapping) for result, probing in self.probed() if probing.mapping is not None]

    def attribution_summaries(self) -> list[AttributionRow]:
        """Return the checks of each attribution method at each layer."""
        return [
            AttributionRow(result, summary, index.settings_of(summary))
            for result in self.results
            if (index := result.task.attributions) is not None
            for summary in index.summary
        ]


@dataclass(frozen=True, slots=True, eq=False)
class RunCollection:
    """All runs of a report."""

    runs: tuple[RunFolder, ...]
    subjects: tuple[Subject, ...]
    datasets: tuple[DatasetRuns, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def models(self) -> list[Subject]:
        """Subjects that are not reference classifiers."""
        return [subject for subject in self.subjects if not subject.reference]

    def results(self) -> Iterator[TaskResult]:
        """Iterate over all results, data set by data set."""
        for dataset in self.datasets:
            yield from dataset.results


def collect_runs(folders: Sequence[Path]) -> RunCollection:
    """Read run folders and sort their results by data set and model.

    A finished run of a reference classifier on the same data, in the same parent folder, is read too, as
    ``medmllm diagnose`` does.

    Raises:
        DataError: a folder is not a run folder.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    if not unique:
        raise DataError(
            "Expected at least one run folder, got none. Name the folder that an evaluation's log ends with."
        )
    runs = [read_run(folder) for folder in unique]
    notes = []
    for folder in _neighbouring_references(runs):
        runs.append(read_run(folder))
        notes.append(text("notes.txt.jinja", "reference_added", run=cut(folder.name)))
    subjects, subject_of = group_subjects(runs)
    results: dict[str, list[TaskResult]] = defaultdict(list)
    for run in runs:
        for task in run.tasks:
            results[task.dataset].append(TaskResult(subject_of[id(run)], run, task))
    specs = dataset_specs()
    datasets = tuple(_dataset_runs(name, members, specs.get(name)) for name, members in results.items())
    return RunCollection(tuple(runs), tuple(subjects), datasets, tuple(notes))


def _dataset_runs(name: str, results: list[TaskResult], spec: DatasetSpec | None) -> DatasetRuns:
    fingerprints = {result.fingerprint for result in results if result.fingerprint}
    title = clean(spec.title) if spec is not None else cut(name)
    return DatasetRuns(name, title, spec, tuple(results), divided=len(fingerprints) > 1)


def _rank(result: TaskResult) -> tuple[int, int, int, bool, str]:
    """Sort the plain closed-set question first; among equal questions, the one with most documents.

    Of two with equally many, the run that only evaluates comes before one that analyses.
    """
    protocol = result.task.settings.protocol
    index = PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)
    documents = len(result.task.outcomes)
    return (int(not result.task.plain), index, -documents, result.task.analysed, result.task.name)


def _neighbouring_references(runs: Sequence[RunFolder]) -> list[Path]:
    """Return the newest reference classifier next to the runs, for each data set that lacks one."""
    parents_of: dict[str, set[Path]] = defaultdict(set)
    covered = {
        task.entry.dataset_fingerprint for run in runs if run.baseline and run.baseline != BLIND for task in run.tasks
    }
    for run in runs:
        for task in run.tasks:
            fingerprint = task.entry.dataset_fingerprint
            if fingerprint and fingerprint not in covered:
                parents_of[fingerprint].add(run.folder.resolve().parent)
    known_folders = {run.folder.resolve() for run in runs}
    references = {}
    for fingerprint, parents in parents_of.items():
        baselines = finished_baselines(parents, fingerprint, "*-baseline-*")
        if baselines and baselines[-1].resolve() not in known_folders:
            references[baselines[-1].resolve()] = baselines[-1]
    return list(references.values())
