"""Run folders as the report needs them: read as far as they go, with a note on everything that is missing."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from medmllm_plugins.data.core.fold_manifest import FoldManifest
from medmllm_plugins.errors import DataError, MedMLLMError, shown
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import VariantsSummary
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.prompts.task_names import PREFIXES
from medmllm_plugins.redaction import shareable_manifest
from medmllm_plugins.results import consistency
from medmllm_plugins.results.attribution_files import read_attributions
from medmllm_plugins.results.attribution_records import AttributionIndex
from medmllm_plugins.results.file_names import (
    ANSWERS,
    ATTRIBUTIONS,
    FOLDS,
    INDEX,
    INTERCHANGE,
    INTERVENTIONS,
    KNOCKOUT,
    MANIFEST,
    METRICS,
    OUTCOMES,
    PATCHING,
    PROBES,
    REPAIRS,
    STEERING,
    UNFINISHED,
    file_stem,
)
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.results.manifest import Manifest, ModelEntry, SettingsEntry, TaskEntry
from medmllm_plugins.results.metric_files import check_metrics_version
from medmllm_plugins.results.outcome_files import AGAIN, NO_SEAL, LineChecker
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.recomputation import Classes
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.results.seal import SealCheck, check_seal
from medmllm_plugins.results.steering_records import Steering
from medmllm_plugins.utils.json_values import clean, mapping
from medmllm_plugins.utils.plain_text import quantity

_LONGEST: Final = 220
"""Bytes of a task's name, behind which its files have endings; a disk allows 255 for both."""


@dataclass(frozen=True, slots=True)
class Unparsed:
    """An answer from which no class could be read: how it was judged, what it says, how often it came."""

    status: str
    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Folds:
    """Who is in which fold of a data set.

    Attributes:
        digest: hash by which two machines compare their folds.
        groups: groups in all.
        divided: groups with documents in more than one fold.
        exposed: test documents that share a group with the train or validation fold.
    """

    dataset: str
    digest: str
    counts: Mapping[str, int]
    groups: int
    divided: int
    exposed: int
    manifest: FoldManifest


@dataclass(frozen=True, slots=True, eq=False)
class TaskRun:
    """What a run folder holds of one task.

    Attributes:
        entry: the task's entry in the manifest; an empty one where there is none.
        unparsed: answers from which no class was read, the most common first.
    """

    name: str
    entry: TaskEntry
    summary: AnySummary | None = None
    outcomes: tuple[Outcome, ...] = ()
    unparsed: tuple[Unparsed, ...] = ()
    probing: ProbeAnalysis | None = None
    attributions: AttributionIndex | None = None
    patching: TwinPatching | None = None
    interchange: Interchange | None = None
    knockout: Knockout | None = None
    steering: Steering | None = None
    interventions: InterventionResults | None = None
    repairs: RepairStudy | None = None
    missing: tuple[str, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Name of the data set; derived from the task's name where there is no manifest."""
        if self.settings.dataset:
            return self.settings.dataset
        bare = self.name.partition(":")[0]
        for prefix in PREFIXES:
            bare = bare.removeprefix(prefix)
        return clean(bare.removesuffix("_letter").removesuffix("_open"))

    @property
    def sources(self) -> Mapping[str, Summary | FindingsSummary]:
        """The metrics by variant; those of a task that asks in one way have an empty name."""
        if isinstance(self.summary, VariantsSummary):
            return self.summary.variants
        return {} if self.summary is None else {"": self.summary}

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in order; empty where they are not known."""
        labels = next((source.labels for source in self.sources.values() if source.labels), ())
        return labels or (self.probing.labels if self.probing else ())

    @property
    def settings(self) -> SettingsEntry:
        """The settings in the manifest; the defaults where there are none."""
        return self.entry.settings or SettingsEntry()

    @property
    def image(self) -> str:
        """``"shown"``, or the blind control."""
        return self.settings.image

    @property
    def varied(self) -> str:
        """What varies: ``"order"``, ``"wording"``, or nothing."""
        return self.settings.varied

    @property
    def plain(self) -> bool:
        """Whether each document was asked about once, its image shown."""
        return self.image == "shown" and not self.varied

    @property
    def analysed(self) -> bool:
        """Whether it holds more than answers: probes, attributions, interventions or repairs."""
        records = (self.probing, self.attributions, self.patching, self.interchange, self.knockout, self.steering)
        return any(record is not None for record in (*records, self.interventions, self.repairs))

    @property
    def scored(self) -> bool:
        """Whether there are figures of its answers."""
        return self.summary is not None and bool(self.summary.metrics)


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """A run folder.

    Attributes:
        manifest: its manifest, without keys and passwords; an empty one where there is none that can be read.
        missing: sentences on what the folder as a whole lacks.
    """

    folder: Path
    manifest: Manifest
    tasks: tuple[TaskRun, ...]
    folds: Mapping[str, Folds]
    missing: tuple[str, ...]
    seal: SealCheck = NO_SEAL

    @property
    def name(self) -> str:
        """The folder's own name."""
        return clean(self.folder.resolve().name)

    @property
    def model(self) -> ModelEntry:
        """The model; an entry without a name where the manifest has none."""
        return self.manifest.model or ModelEntry(name="")

    @property
    def command(self) -> Mapping[str, Any]:
        """The command line that made it."""
        return self.manifest.command or {}

    @property
    def baseline(self) -> str:
        """Method of the reference classifier; empty for the run of a model."""
        return clean(self.command.get("baseline") or "")

    def all_missing(self) -> list[str]:
        """Return all notes on what is missing, task by task."""
        return [*self.missing, *(f"{task.name}: {note}" for task in self.tasks for note in task.missing)]


def read_run(folder: Path) -> RunFolder:
    """Read a run folder, finished or not.

    Raises:
        DataError: there is no such folder, or nothing of a run in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a run folder, got none. Name the folder that an evaluation's log ends with."
        )
    missing: list[str] = []
    manifest = _manifest(folder / MANIFEST, missing)
    names = list(manifest.tasks)
    stems = {file_stem(name) for name in names}
    names += [name for name in _tasks_in(folder) if file_stem(name) not in stems]
    if not names and manifest == Manifest():
        raise DataError(f"{folder}: expected a run folder with a {MANIFEST}, got none.{_inside(folder)}")
    seal = check_seal(folder)
    missing += consistency.of_folder(manifest, seal)
    if not names:
        missing.append("The run has no task yet: it ended before its first question.")
    tasks = tuple(_task(folder, name, manifest.tasks.get(name, TaskEntry()), seal) for name in names)
    folds = [path for path in sorted(folder.glob(f"*{FOLDS}")) if not consistency.left_out(path, folder, seal, missing)]
    return RunFolder(
        folder=folder,
        manifest=manifest,
        tasks=tasks,
        folds={entry.dataset: entry for path in folds if (entry := _folds(path, missing))},
        missing=tuple(missing),
        seal=seal,
    )


def _manifest(path: Path, missing: list[str]) -> Manifest:
    try:
        return Manifest.from_dict(shareable_manifest(mapping(_json(path, missing))))
    except DataError as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return Manifest()


def _inside(folder: Path) -> str:
    inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    if inside:
        return f" It holds run folders: name them, such as {folder / inside[-1]}."
    return " Name the folder that an evaluation's log ends with."


def _tasks_in(folder: Path) -> list[str]:
    """Return the tasks that have files, for folders without a manifest."""
    stems = {
        path.name.removesuffix(suffix) for suffix in (METRICS, OUTCOMES, PROBES) for path in folder.glob(f"*{suffix}")
    }
    stems |= {path.parent.name for path in folder.glob(f"{ATTRIBUTIONS}/*/{INDEX}")}
    return sorted(stem.replace("+", ":") for stem in stems)


def _task(folder: Path, name: str, entry: TaskEntry, seal: SealCheck) -> TaskRun:
    missing: list[str] = []
    stem = file_stem(name)
    if Path(stem).name != stem or len(os.fsencode(stem)) > _LONGEST:
        missing.append("its name is not a valid file name, so its files were not read.")
        return TaskRun(clean(name), entry, missing=tuple(missing))
    if entry != TaskEntry() and entry.settings is None:
        missing.append("not a task of this package; its figures are in the host's own results file.")
        return TaskRun(clean(name), entry, missing=tuple(missing))
    index = folder / ATTRIBUTIONS / stem / INDEX
    again = "`medmllm attribute RUN_DIR --ids ID` makes it again."
    index_is_out = consistency.left_out(index, folder, seal, missing, again)
    attributions = None if index_is_out else _attributions(index, name, missing)
    scored = any((folder / f"{stem}{suffix}").exists() for suffix in (METRICS, OUTCOMES, PROBES))
    if not scored and attributions is None:
        missing.insert(0, f"nothing of it is scored yet{_kept(folder)}.")
        return TaskRun(clean(name), entry, missing=tuple(missing))
    # A task that explains answers may leave no figures of them.
    notes: list[str] = [] if attributions is not None else missing
    stored = _metrics(folder / f"{stem}{METRICS}", notes)
    outcomes, answers, unparsed, whole = _outcomes(folder / f"{stem}{OUTCOMES}", folder, entry, seal, notes)
    whole = whole and consistency.is_complete(entry, stored, outcomes)
    summary = consistency.checked_summary(stem, entry, stored, outcomes if whole else (), seal, missing)
    probes = folder / f"{stem}{PROBES}"
    probes_are_out = consistency.left_out(probes, folder, seal, missing, "`medmllm diagnose RUN_DIR` makes it again.")
    return TaskRun(
        name=clean(name),
        entry=entry,
        summary=summary,
        outcomes=outcomes,
        unparsed=unparsed,
        probing=None if probes_are_out else _probing(probes, name, entry, missing),
        attributions=attributions,
        patching=_patching(folder, stem, name, entry, seal, missing),
        interchange=_experiment(Interchange, folder / f"{stem}{INTERCHANGE}", folder, seal, missing),
        knockout=_experiment(Knockout, folder / f"{stem}{KNOCKOUT}", folder, seal, missing),
        steering=_experiment(Steering, folder / f"{stem}{STEERING}", folder, seal, missing),
        interventions=_experiment(InterventionResults, folder / f"{stem}{INTERVENTIONS}", folder, seal, missing),
        repairs=_experiment(RepairStudy, folder / f"{stem}{REPAIRS}", folder, seal, missing),
        missing=tuple(missing),
        answers=answers,
    )


def _kept(folder: Path) -> str:
    """Return how many answers an interrupted run keeps, in words; empty for none."""
    count = 0
    for path in folder.glob(f"{UNFINISHED}/*/{ANSWERS}"):
        try:
            with path.open("rb") as lines:
                count += sum(bool(line.strip()) for line in lines)
        except OSError:
            continue  # it goes away when the run is finished
    return f"; {quantity(count, 'answer')} of the run {'is' if count == 1 else 'are'} kept" if count else ""


def _json(path: Path, missing: list[str], absent: str | None = None) -> Any:
    """Read a JSON file; return ``None``, and add a note, where it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(absent or f"{path.name} is not there.")
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"{path.name} cannot be read ({clean(error)[:200]}).")
    return None


def _metrics(path: Path, missing: list[str]) -> Mapping[str, Any]:
    content = mapping(_json(path, missing, f"no figures of the answers. {AGAIN}"))
    try:
        check_metrics_version(content)
    except DataError as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return {}
    return content


def _outcomes(
    path: Path, folder: Path, entry: TaskEntry, seal: SealCheck, missing: list[str]
) -> tuple[tuple[Outcome, ...], dict[str, str], tuple[Unparsed, ...], bool]:
    """Return scored answers, their texts by id, the unparsed texts, and whether no line was left out.

    Damaged lines are left out with a note.
    """
    if consistency.left_out(path, folder, seal, missing, "Copy the run folder again, or run the task again."):
        return (), {}, (), False
    outcomes: list[Outcome] = []
    answers: dict[str, str] = {}
    checker = LineChecker(Classes.of_task(entry, {}))
    bad: list[str] = []
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for position, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    outcome = checker.check(Outcome.from_dict(record), position)
                except (ValueError, TypeError, AttributeError, RecursionError, MedMLLMError) as error:
                    bad.append(f"line {position}: {clean(shown(error))}")
                    continue
                outcomes.append(outcome)
                if "answer" in record:
                    answers[outcome.id] = str(record["answer"])
    except FileNotFoundError:
        missing.append(f"no scored answers ({path.name}), so no ROC curves, paired tests or unparsed answers.")
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({clean(error)}).")
    if bad:
        missing.append(f"{quantity(len(bad), 'damaged line')} in {path.name} left out ({bad[0]}).")
    if outcomes and not bad and entry.evaluated not in (None, len(outcomes)):
        missing.append(
            f"{path.name}: expected {entry.evaluated:,} scored answers, as {MANIFEST} says, got {len(outcomes):,}."
        )
    texts = Counter((o.status, answers[o.id]) for o in outcomes if o.status != "parsed" and o.id in answers)
    unparsed = tuple(Unparsed(status, text, count) for (status, text), count in texts.most_common())
    return tuple(outcomes), answers, unparsed, not bad


def _probing(path: Path, name: str, entry: TaskEntry, missing: list[str]) -> ProbeAnalysis | None:
    if entry.probes is not None and entry.probes.failed:
        missing.append(f"no probes: {entry.probes.failed}")
        return None
    if not path.exists():
        if (entry.settings is not None and entry.settings.features is not None) or name.startswith("med_probe"):
            missing.append(f"no probes ({path.name}). If features were kept, `medmllm diagnose RUN_DIR` makes them.")
        return None
    try:
        read = _json(path, missing)
        return None if read is None else ProbeAnalysis.from_dict(read)
    except (DataError, TypeError, ValueError, IndexError, KeyError) as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return None


def _patching(
    folder: Path, stem: str, name: str, entry: TaskEntry, seal: SealCheck, missing: list[str]
) -> TwinPatching | None:
    path = folder / f"{stem}{PATCHING}"
    if entry.patching is not None and entry.patching.failed:
        missing.append(f"no interventions, or not all of them: {entry.patching.failed}")
    if consistency.left_out(path, folder, seal, missing):
        return None
    if not path.exists():
        if name.startswith("med_patch") and entry.patching is None:
            missing.append(f"no interventions ({path.name}). {AGAIN}")
        return None
    try:
        read = _json(path, missing)
        return None if read is None else TwinPatching.from_dict(read)
    except (DataError, TypeError, ValueError) as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return None


Experiment = TypeVar("Experiment", Interchange, Knockout, InterventionResults, RepairStudy, Steering)


def _experiment(
    kind: type[Experiment], path: Path, folder: Path, seal: SealCheck, missing: list[str]
) -> Experiment | None:
    """Read the result of an intervention within one model."""
    if consistency.left_out(path, folder, seal, missing) or not path.exists():
        return None
    try:
        read = _json(path, missing)
        return None if read is None else kind.from_dict(read)
    except (DataError, TypeError, ValueError) as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return None


def _attributions(path: Path, name: str, missing: list[str]) -> AttributionIndex | None:
    if not path.exists():
        begun = sum(1 for _ in path.parent.glob("entries/*.json"))
        if begun:
            missing.append(f"attributions of {quantity(begun, 'document')} were started, but not gathered. {AGAIN}")
        elif name.startswith("med_attr"):
            missing.append(f"no attributions ({ATTRIBUTIONS}/{path.parent.name}/{INDEX}).")
        return None
    try:
        read = _json(path, missing)
        return None if read is None else read_attributions(read, path.parent)
    except (DataError, TypeError, ValueError) as error:
        missing.append(f"{ATTRIBUTIONS}/{path.parent.name}/{INDEX} cannot be used: {clean(error)}.")
        return None


def _folds(path: Path, missing: list[str]) -> Folds | None:
    try:
        manifest = FoldManifest.from_dict(_json(path, missing))
    except DataError as error:
        missing.append(f"{path.name} cannot be used: {clean(error)}.")
        return None
    rows = [(str(row["group"]), str(row["fold"])) for row in manifest.rows() if row.keys() >= {"group", "fold"}]
    if not rows:
        missing.append(f"{path.name} holds no folds that can be read.")
        return None
    folds_of: dict[str, set[str]] = defaultdict(set)
    for group, fold in rows:
        folds_of[group].add(fold)
    return Folds(
        dataset=manifest.dataset or path.name.removesuffix(FOLDS),
        digest=manifest.hash,
        counts=dict(Counter(fold for _, fold in rows)),
        groups=len(folds_of),
        divided=sum(len(folds) > 1 for folds in folds_of.values()),
        exposed=sum(fold == "test" and len(folds_of[group]) > 1 for group, fold in rows),
        manifest=manifest,
    )
