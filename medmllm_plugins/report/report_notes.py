"""What a reader must know before trusting the numbers: leaks, limits, and what the runs warned of."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.prompts.task_names import answering_task, probing_command
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import Cell, DataPart, RunCollection
from medmllm_plugins.report.run_pairs import leagues, unlike
from medmllm_plugins.report.task_identity import facts
from medmllm_plugins.report.verdict import questions_of
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence
from medmllm_plugins.utils.plain_text import listed, quantity

_FACTS: Final = {
    "dataset_options": "options of the data set",
    "protocol": "how the classes are listed",
    "folds": "folds",
    "finding": "finding",
    "view": "how volumes are shown",
    "order": "order of the options",
    "paraphrase": "wording",
    "shots": "solved examples",
}
"""What main tasks may differ in, as people say it."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences for the page: what is missing, what leaks, further warnings, and of which data no leak is known."""

    missing: tuple[str, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...]
    folds: str


def notes(gathered: RunCollection) -> Notes:
    """Collect them from all runs, each sentence once."""
    several = len(gathered.runs) > 1
    missing = [f"{cut(run.name, 60)}: {one}" if several else one for run in gathered.runs for one in run.all_missing()]
    if not any(cell.task.probing for cell in gathered.cells()):
        missing.append(f"No run has probes, so nothing is known of where the signal is lost{_how_to_probe(gathered)}.")
    for part in gathered.sets:
        missing += _of_references(part)
        missing += _of_rows(part)
    return Notes(
        missing=tuple(dict.fromkeys(missing)),
        leaks=tuple(dict.fromkeys(_leaks(gathered))),
        warnings=tuple(dict.fromkeys(_warnings(gathered))),
        folds=_folds(gathered),
    )


def _folds(gathered: RunCollection) -> str:
    """Of which data sets the folds were read and no group stands in two, and of which nothing is known."""
    leaking = {folds.dataset for run in gathered.runs for folds in run.folds.values() if folds.divided}
    leaking |= {task.dataset for run in gathered.runs for task in run.tasks if task.told.get("leaks")}
    read = {folds.dataset for run in gathered.runs for folds in run.folds.values()}
    clear = [part.title for part in gathered.sets if part.name in read - leaking]
    unknown = [part.title for part in gathered.sets if part.name not in read]
    said = [f"No group stands in two folds of {listed(clear)}."] if clear else []
    if unknown:
        said.append(f"No run holds the folds of {listed(unknown)}, so that groups in two folds are not looked for.")
    return " ".join(said)


def _of_references(part: DataPart) -> Iterator[str]:
    """Models and probes that no reference classifier stands beside."""
    held = any(cell.task.probing and known(cell.task.probing.reference) for cell in part.cells)
    how = f"(medmllm baseline {_asking_task(part)})"
    if part.models and not part.references and not held:
        yield f"{part.title}: no reference classifier to compare with {how}."
    alone: dict[str, list[str]] = {}
    for one in map(part.main, part.models):
        if one is not None and part.references and not held and all(_apart(one, other) for other in part.references):
            alone.setdefault(_apart(one, part.references[0]), []).append(one.subject.label)
    for why, who in alone.items():
        yield (
            f"{part.title}: no reference classifier to compare {listed(who)} with {how}. That of "
            f"{cut(part.references[0].run.name, 60)} is none: {why}."
        )
    for cell in part.probed():
        probing = cell.task.probing
        alike = [other for other in part.references if not _apart(cell, other)]
        if alike and probing is not None and not known(probing.reference):
            yield (
                f"{cell.task.name} of {cell.subject.label}: its probes were not held against the reference classifier, "
                f"which came later: medmllm diagnose {shlex.quote(cell.run.name)} --reference "
                f"{shlex.quote(alike[0].run.name)}, in the folder that holds both runs."
            )


def _asking_task(part: DataPart) -> str:
    """The task that asks about a data set: one that was run, else the one that its probes or maps go with."""
    names = [cell.task.name.partition(":")[0] for cell in part.cells]
    asking = [name for name in names if answering_task(name) == name]
    name = min(asking, key=lambda name: (name.endswith(("_letter", "_open")), name)) if asking else ""
    return shlex.quote(name or answering_task(names[0]))


def _how_to_probe(gathered: RunCollection) -> str:
    """The command that probes the model of the first run of one; empty where no run tells its model."""
    for cell in gathered.cells():
        if not cell.subject.reference and (command := probing_command(cell.run.command, cell.task.name)):
            return f": {clean(command)}"
    return ""


def _apart(one: Cell, reference: Cell) -> str:
    return unlike(one, reference, by_question=True) or ("" if reference.task.scored else "its run has no figures")


def _of_rows(part: DataPart) -> Iterator[str]:
    """Tasks of which fewer answers are on record than were scored."""
    for cell in part.cells:
        there, scored = len(cell.task.outcomes), questions_of(cell)
        if cell.task.scored and 0 < there < scored:
            yield (
                f"{cell.task.name} of {cell.subject.label}: {there:,} of {scored:,} scored answers are on record. "
                "Metrics are of all; ROC curves and paired differences are of those on record."
            )


def _leaks(gathered: RunCollection) -> Iterator[str]:
    for run in gathered.runs:
        for folds in run.folds.values():
            if folds.divided:
                yield (
                    f"{folds.dataset}: {quantity(folds.divided, 'group')} (patient, lesion, source or near-duplicate) "
                    f"stand in more than one fold, which exposes {quantity(folds.exposed, 'test document')}."
                )
        for task in run.tasks:
            if task.told.get("leaks"):
                yield clean(task.told["leaks"])


def _warnings(gathered: RunCollection) -> Iterator[str]:
    yield from gathered.notes
    for part in gathered.sets:
        if part.divided:
            yield f"{part.title}: the runs saw different data (their fingerprints differ). Do not compare them."
        yield from _of_questions(part)
    for run in gathered.runs:
        yield from _of_run(run)
    versions: dict[str, set[str]] = {}
    for run in gathered.runs:
        for package, version in mapping(run.manifest.get("versions")).items():
            versions.setdefault(clean(package), set()).add(clean(version))
    differing = [f"{package} ({', '.join(sorted(found))})" for package, found in versions.items() if len(found) > 1]
    if differing:
        yield f"The runs were made with different versions of {listed(differing)}."


def _of_questions(part: DataPart) -> Iterator[str]:
    """Models whose main tasks do not ask the same."""
    mains = [cell for one in part.subjects if not one.blind and (cell := part.main(one)) is not None]
    by_classes: dict[tuple[str, ...], list[str]] = {}
    for cell in mains:
        by_classes.setdefault(tuple(sorted(set(cell.answers))), []).append(cell.subject.label)
    if len(by_classes) > 1:
        told = [f"{listed(who)}: {cut(listed(list(classes)), 200)}" for classes, who in by_classes.items()]
        yield f"{part.title}: the runs have different classes ({'; '.join(told)}). Do not compare them."
    for league in leagues([cell for cell in mains if not cell.subject.reference]):
        asked = [facts(cell.run, cell.task) for cell in league]
        differing = [words for name, words in _FACTS.items() if len({one[name] for one in asked}) > 1]
        if differing:
            told = [f"{cell.subject.label} by {cell.task.name}" for cell in league]
            what = listed(differing)
            yield f"{part.title}: the models were not asked alike; they differ in {what} ({'; '.join(told)})."


def _of_run(run: RunFolder) -> Iterator[str]:
    limit = number(run.command.get("limit"))
    if known(limit):
        what = f"{limit:.0%} of the" if 0 < limit < 1 else f"the first {int(limit):,}"
        yield f"{cut(run.name, 60)}: only {what} rows of each task were asked about (--limit)."
    for warning in sequence(run.model.get("weight_warnings")):
        yield f"{cut(run.model.get('name') or run.name, 60)}: {clean(warning)}"
    for task in run.tasks:
        yield from _of_task(task)


def _of_task(task: TaskRun) -> Iterator[str]:
    skipped = sequence(task.told.get("skipped"))
    if skipped:
        yield f"{task.name}: {quantity(len(skipped), 'file')} could not be read and were left out (on_error=skip)."
    for warning in sequence(task.told.get("warnings")):
        yield f"{task.dataset}: {clean(warning)}"
    for note in sequence(task.told.get("notes")):
        yield f"{task.dataset}: {clean(note)}"
    for other, why in mapping(task.told.get("overlaps")).items():
        yield f"{task.dataset} shares images with {clean(other)} ({clean(why)}): results on both are not independent."
    if task.probing is not None:
        yield from (f"{task.name}: {one}" for one in task.probing.warnings)
    if task.attributions is not None:
        yield from (f"{task.name}: {one}" for one in task.attributions.warnings)
        for one in task.attributions.summary:
            yield from (f"{task.name}, {one.method} at {one.layer}: {failed}" for failed in one.failed)
