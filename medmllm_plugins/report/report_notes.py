"""What a reader must know before trusting the numbers: missing parts, leaks, limits and warnings of the runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.prompts.task_names import answering_task, probing_command
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, RunCollection, TaskResult
from medmllm_plugins.report.run_pairs import comparable_groups, mismatch
from medmllm_plugins.report.task_identity import identity
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import clean, number

_QUESTION_FACTS: Final = (*("dataset_options", "protocol", "folds", "finding", "view", "order", "paraphrase", "shots"),)
"""Facts in which the questions of models may differ."""
UNEVEN: Final = 0.05
"""Difference between the shares of parsed answers of two classes that is worth a note."""
MIN_DOCUMENTS: Final = 20
"""Documents of a class, at least, for that note."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes for the page: what is missing, leaks, warnings, and of which data sets the folds were checked."""

    missing: tuple[str, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...]
    folds: str


def note(macro: str, **values: Any) -> str:
    """Return a note in words; see ``templates/notes.txt.jinja``."""
    return text("notes.txt.jinja", macro, **values)


def collect_notes(collection: RunCollection) -> Notes:
    """Collect the notes on all runs, each once."""
    several = len(collection.runs) > 1
    missing = [
        f"{cut(run.name, 60)}: {problem}" if several else problem
        for run in collection.runs
        for problem in run.all_missing()
    ]
    if not any(result.task.probing for result in collection.results()):
        missing.append(note("no_probes", command=_probing_command(collection)))
    for dataset in collection.datasets:
        missing += [*_missing_references(dataset), *_missing_rows(dataset)]
    return Notes(
        missing=tuple(dict.fromkeys(missing)),
        leaks=tuple(dict.fromkeys(_leaks(collection))),
        warnings=tuple(dict.fromkeys(_warnings(collection))),
        folds=_folds(collection),
    )


def _folds(collection: RunCollection) -> str:
    """Return which data sets have no group in two folds, and of which the folds are unknown."""
    folds = [folds for run in collection.runs for folds in run.folds.values()]
    leaking = {record.dataset for record in folds if record.divided}
    leaking |= {task.dataset for run in collection.runs for task in run.tasks if task.entry.leaks}
    checked = {record.dataset for record in folds}
    clear = [dataset.title for dataset in collection.datasets if dataset.name in checked - leaking]
    unknown = [dataset.title for dataset in collection.datasets if dataset.name not in checked]
    return note("folds", clear=clear, unknown=unknown)


def _missing_references(dataset: DatasetRuns) -> Iterator[str]:
    """Yield notes on models and probes without a reference classifier."""
    references = dataset.references
    diagnosed = any(known(probing.reference) for _, probing in dataset.probed())
    names = {"data_set": dataset.title, "task": _asking_task(dataset)}
    if dataset.models and not references and not diagnosed:
        yield note("no_reference", **names)
    by_reason: dict[str, list[str]] = {}
    for result in map(dataset.main, dataset.models):
        if result is not None and references and not diagnosed:
            obstacles = [_obstacle(result, reference) for reference in references]
            if all(obstacles):
                by_reason.setdefault(obstacles[0], []).append(result.subject.label)
    for code, models in by_reason.items():
        reason = text("verdict.txt.jinja", "obstacle", code=code)
        yield note("reference_unusable", **names, models=models, run=cut(references[0].run.name, 60), reason=reason)
    for result, probing in dataset.probed():
        usable = [reference for reference in references if not _obstacle(result, reference)]
        if usable and not known(probing.reference):
            run, reference = shlex.quote(result.run.name), shlex.quote(usable[0].run.name)
            yield note("old_diagnosis", task=result.task.name, model=result.subject.label, run=run, reference=reference)


def _asking_task(dataset: DatasetRuns) -> str:
    """Return a task that asks about a data set: one that was run, else the one that its probes or maps belong to."""
    names = [result.task.name.partition(":")[0] for result in dataset.results]
    asking = [name for name in names if answering_task(name) == name]
    name = min(asking, key=lambda name: (name.endswith(("_letter", "_open")), name)) if asking else ""
    return shlex.quote(name or answering_task(names[0]))


def _probing_command(collection: RunCollection) -> str:
    """Return the command that probes the first model; empty if no run names its model."""
    for result in collection.results():
        if not result.subject.reference and (command := probing_command(result.run.command, result.task.name)):
            return clean(command)
    return ""


def _obstacle(result: TaskResult, reference: TaskResult) -> str:
    return mismatch(result, reference, by_question=True) or ("" if reference.task.scored else "no_metrics")


def _missing_rows(dataset: DatasetRuns) -> Iterator[str]:
    """Yield notes on tasks of which fewer answers are on record than were scored."""
    for result in dataset.results:
        rows, scored = len(result.task.outcomes), result.question_count
        if result.task.scored and 0 < rows < scored:
            yield note("rows_missing", task=result.task.name, model=result.subject.label, rows=rows, scored=scored)


def _leaks(collection: RunCollection) -> Iterator[str]:
    for run in collection.runs:
        for folds in run.folds.values():
            if folds.divided:
                yield note("divided_groups", data_set=folds.dataset, divided=folds.divided, exposed=folds.exposed)
        yield from (task.entry.leaks for task in run.tasks if task.entry.leaks)


def _warnings(collection: RunCollection) -> Iterator[str]:
    yield from collection.notes
    for dataset in collection.datasets:
        if dataset.divided:
            yield note("different_data", data_set=dataset.title)
        yield from _different_questions(dataset)
    for run in collection.runs:
        yield from _run_warnings(run)
    versions: dict[str, set[str]] = {}
    for run in collection.runs:
        for package, version in run.manifest.versions.items():
            versions.setdefault(clean(package), set()).add(clean(version))
    differing = [f"{package} ({', '.join(sorted(known_))})" for package, known_ in versions.items() if len(known_) > 1]
    if differing:
        yield note("different_versions", packages=differing)


def _different_questions(dataset: DatasetRuns) -> Iterator[str]:
    """Yield notes on models whose main tasks do not ask the same."""
    results = dataset.main_results()
    by_classes: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        by_classes.setdefault(tuple(sorted(set(result.answers))), []).append(result.subject.label)
    if len(by_classes) > 1:
        groups = [(models, classes) for classes, models in by_classes.items()]
        yield note("different_classes", data_set=dataset.title, groups=groups)
    for group in comparable_groups([result for result in results if not result.subject.reference]):
        identities = [identity(result.run, result.task) for result in group]
        differing = [name for name in _QUESTION_FACTS if len({facts[name] for facts in identities}) > 1]
        if differing:
            tasks = [(result.subject.label, result.task.name) for result in group]
            yield note("different_questions", data_set=dataset.title, differing=differing, tasks=tasks)


def _run_warnings(run: RunFolder) -> Iterator[str]:
    limit = number(run.command.get("limit"))
    if known(limit):
        yield note("limited", run=cut(run.name, 60), limit=limit)
    for warning in run.model.weight_warnings:
        yield f"{cut(run.model.name or run.name, 60)}: {warning}"
    for task in run.tasks:
        yield from _task_warnings(task)


def _task_warnings(task: TaskRun) -> Iterator[str]:
    if task.entry.skipped:
        yield note("skipped_files", task=task.name, count=len(task.entry.skipped))
    yield from (f"{task.dataset}: {warning}" for warning in (*task.entry.warnings, *task.entry.notes))
    for other, reason in task.entry.overlaps.items():
        yield note("overlap", data_set=task.dataset, other=other, reason=reason)
    if isinstance(task.summary, Summary):
        parsed = {row.label: row.parsed for row in task.summary.per_class if row.n >= MIN_DOCUMENTS}
        if parsed and max(parsed.values()) - min(parsed.values()) > UNEVEN:
            low, high = min(parsed, key=parsed.__getitem__), max(parsed, key=parsed.__getitem__)
            shares = (parsed[low], parsed[high])
            yield note("uneven_parsing", task=task.name, low=cut(low, 40), high=cut(high, 40), shares=shares)
    if task.probing is not None:
        yield from (f"{task.name}: {warning}" for warning in task.probing.warnings)
        anchors = task.probing.anchors
        if anchors is not None and anchors.text == "not answered":
            yield note("text_not_answered", task=task.name)
        if anchors is not None and anchors.positive == "not answered":
            yield note("marks_not_answered", task=task.name)
    if task.attributions is not None:
        yield from (f"{task.name}: {warning}" for warning in task.attributions.warnings)
        for summary in task.attributions.summary:
            yield from (f"{task.name}, {summary.method} at {summary.layer}: {failed}" for failed in summary.failed)
