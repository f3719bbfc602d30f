"""Run folders put together: which models, which data sets, and which run holds what of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.task_identity import question, shots
from medmllm_plugins.results.run_reader import RunFolder, TaskRun, read_run
from medmllm_plugins.utils.json_values import clean, mapping, number
from medmllm_plugins.utils.plain_text import quantity

_BLIND: Final = "majority"
_PROTOCOLS: Final = ("closed_set", "letter", "open")


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model, or a reference classifier.

    Attributes:
        number: its place among all; decides its colour and marker everywhere.
        label: its name on the page.
        runs: its run folders.
        reference: whether it is an ordinary classifier (``medmllm baseline``).
        blind: whether it looks at no image.
    """

    number: int
    label: str
    runs: tuple[RunFolder, ...]
    reference: bool = False
    blind: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One task of one subject, in one run folder."""

    subject: Subject
    run: RunFolder
    task: TaskRun

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """The metrics with their intervals, by name."""
        return {name: Estimate.from_dict(told) for name, told in mapping(self.task.metrics.get("metrics")).items()}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data; empty where the manifest does not tell it."""
        return clean(self.task.told.get("dataset_fingerprint") or "")

    @property
    def multilabel(self) -> bool:
        """Whether each question is about one finding, and answered with yes or no."""
        return self.task.metrics.get("kind") == "multilabel" or any(one.finding for one in self.task.outcomes)

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes; of a multi-label set the findings that were asked about."""
        if self.multilabel and self.task.metrics.get("kind") != "multilabel":
            return tuple(dict.fromkeys(clean(one.finding) for one in self.task.outcomes if one.finding))
        return self.task.labels

    @property
    def shots(self) -> int:
        """Number of solved examples before each question."""
        return shots(self.run, self.task)

    def question(self, *but: str) -> tuple[str, ...]:
        """What is asked, but for the facts named; see :func:`medmllm_plugins.report.task_identity.question`."""
        return question(self.run, self.task, but)


@dataclass(frozen=True, slots=True, eq=False)
class DataPart:
    """One data set and all that was run on it.

    Attributes:
        name: the data set's.
        title: its name for people.
        spec: its declaration; ``None`` where this installation has none.
        cells: all tasks on it.
        divided: whether the runs saw other data, by the fingerprints that they note.
    """

    name: str
    title: str
    spec: DatasetSpec | None
    cells: tuple[Cell, ...]
    divided: bool

    @property
    def subjects(self) -> list[Subject]:
        """Who was run on it, models first."""
        found = {cell.subject.number: cell.subject for cell in self.cells}
        return sorted(found.values(), key=lambda one: (one.reference, one.number))

    @property
    def models(self) -> list[Subject]:
        """Those that are no reference classifiers."""
        return [one for one in self.subjects if not one.reference]

    def of(self, subject: Subject) -> list[Cell]:
        """All cells of one subject."""
        return [cell for cell in self.cells if cell.subject is subject]

    def main(self, subject: Subject) -> Cell | None:
        """The cell that says how good a subject is: the plain question before others, of all documents if possible."""
        scored = [cell for cell in self.of(subject) if cell.task.scored and cell.task.image == "shown"]
        return min(scored, key=_rank) if scored else None

    def held_against(self, cell: Cell) -> Cell | None:
        """What a blind control or a varied task is held against; ``None`` where nothing of the kind was run.

        A control is held against the same question with the image shown, and a task that varies order or wording
        against the same question asked once. Anything else, such as letters for a closed set, would mix two effects.
        """
        if cell.task.image != "shown":
            varies: tuple[str, ...] = ("image",)
        else:
            varies = {"order": ("order",), "wording": ("paraphrase",)}.get(cell.task.varied, ())
        same = [
            one
            for one in self.of(cell.subject)
            if varies
            and one.task.scored
            and one.task.image == "shown"
            and (one.task.plain or cell.task.image != "shown")
            and one.question(*varies) == cell.question(*varies)
        ]
        return min(same, key=_rank) if same else None

    @property
    def references(self) -> list[Cell]:
        """A cell of each reference classifier that sees images, the most accurate first, those without figures last.

        Whether one may be held against a model is another question: see :func:`medmllm_plugins.report.run_pairs.unlike`.
        """
        found = [self.main(one) or self.of(one)[0] for one in self.subjects if one.reference and not one.blind]

        def place(cell: Cell) -> float:
            accuracy = cell.metrics.get("accuracy")
            return -accuracy.value if accuracy is not None and known(accuracy) else 1.0

        return sorted(found, key=place)

    def probed(self) -> list[Cell]:
        """Cells with probes."""
        return [cell for cell in self.cells if cell.task.probing is not None]


@dataclass(frozen=True, slots=True, eq=False)
class RunCollection:
    """Everything that the report is about."""

    runs: tuple[RunFolder, ...]
    subjects: tuple[Subject, ...]
    sets: tuple[DataPart, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def models(self) -> list[Subject]:
        """Subjects that are no reference classifiers."""
        return [one for one in self.subjects if not one.reference]

    def cells(self) -> Iterator[Cell]:
        """All cells, data set by data set."""
        for part in self.sets:
            yield from part.cells


def collect_runs(folders: Sequence[Path]) -> RunCollection:
    """Read run folders and sort what they hold by data set and model.

    A finished run of a reference classifier on the same data that stands beside a named folder is read too, as
    ``medmllm diagnose`` does.

    Raises:
        DataError: a folder is no run folder.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    if not unique:
        raise DataError(
            "expected at least one run folder, found none. Name the folder that an evaluation's log ends with."
        )
    runs = [read_run(folder) for folder in unique]
    notes = []
    for folder in _references_beside(runs):
        runs.append(read_run(folder))
        notes.append(f"The reference classifier in {cut(folder.name)} stands beside the runs and was read by itself.")
    subjects, holder = _subjects(runs)
    cells: dict[str, list[Cell]] = defaultdict(list)
    for run in runs:
        for task in run.tasks:
            cells[task.dataset].append(Cell(holder[id(run)], run, task))
    known_sets = dataset_specs()
    sets = tuple(_part(name, found, known_sets.get(name)) for name, found in cells.items())
    return RunCollection(tuple(runs), tuple(subjects), sets, tuple(notes))


def _part(name: str, cells: list[Cell], spec: DatasetSpec | None) -> DataPart:
    prints = {str(cell.task.told["dataset_fingerprint"]) for cell in cells if cell.task.told.get("dataset_fingerprint")}
    title = clean(spec.title) if spec is not None else cut(name)
    return DataPart(name, title, spec, tuple(cells), divided=len(prints) > 1)


def _rank(cell: Cell) -> tuple[int, int, int, str]:
    """The plain closed-set question first; of several with the same, the one that asked about most documents."""
    task = cell.task
    protocol = str(task.told.get("protocol") or "closed_set")
    place = _PROTOCOLS.index(protocol) if protocol in _PROTOCOLS else len(_PROTOCOLS)
    return (int(not task.plain), place, -len(task.outcomes), task.name)


def _subjects(runs: Sequence[RunFolder]) -> tuple[list[Subject], dict[int, Subject]]:
    """One subject a model; a run that holds a task again begins another of the same name."""
    bundles: list[tuple[tuple[str, ...], list[RunFolder]]] = []
    for run in runs:
        names = {task.name for task in run.tasks}
        bundle = next(
            (
                held
                for key, held in bundles
                if key == _key(run) and not names & {task.name for one in held for task in one.tasks}
            ),
            None,
        )
        if bundle is None:
            bundles.append((_key(run), [run]))
        else:
            bundle.append(run)
    labels = _labels([held for _, held in bundles])
    order = sorted(range(len(bundles)), key=lambda place: bool(bundles[place][1][0].baseline))
    subjects: list[Subject] = []
    holder: dict[int, Subject] = {}
    for turn, place in enumerate(order):
        held = bundles[place][1]
        method = held[0].baseline
        subject = Subject(turn, labels[place], tuple(held), bool(method), method == _BLIND)
        subjects.append(subject)
        holder |= {id(run): subject for run in held}
    return subjects, holder


def _key(run: RunFolder) -> tuple[str, ...]:
    """What makes two runs runs of one model: the model, and how it was asked to answer."""
    told = run.model
    how = tuple(_asked(run).values())
    if not told:
        return (str(run.command.get("model") or run.name), str(run.command.get("model_args") or ""), *how)
    names = ("name", "pretrained", "fingerprint", "method", "dtype", "peft", "load_in", "system", "max_new_tokens")
    return (*(str(told.get(name)) for name in names), *how)


def _asked(run: RunFolder) -> dict[str, str]:
    """Arguments of the command that change every answer, as text; empty where they are as usual."""
    examples = number(run.command.get("num_fewshot"))
    arguments = run.command.get("gen_kwargs")
    return {
        "examples": quantity(int(examples), "example") if known(examples) and examples > 0 else "",
        "arguments": "" if not arguments else clean(arguments),
    }


def _labels(bundles: Sequence[Sequence[RunFolder]]) -> list[str]:
    """The shortest names that tell all apart: the model's, its size, how it was loaded and asked, the run folder's."""
    forms = [_forms(held[0]) for held in bundles]
    chosen = [1] * len(bundles)
    for depth in range(1, 4):
        labels = [form[depth_] for form, depth_ in zip(forms, chosen, strict=True)]
        twice = {label for label in labels if labels.count(label) > 1}
        if not twice:
            break
        chosen = [min(depth + 1, 3) if label in twice else at for label, at in zip(labels, chosen, strict=True)]
    labels = [form[at] for form, at in zip(forms, chosen, strict=True)]
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[:place].count(label) + 1}"
        for place, label in enumerate(labels)
    ]


def _forms(run: RunFolder) -> tuple[str, str, str, str]:
    told = run.model
    name = cut(told.get("name") or run.command.get("model") or run.name, 40)
    size = cut(Path(str(told["pretrained"])).name, 30) if told.get("pretrained") else ""
    if not told and run.command.get("model_args"):
        size = cut(run.command["model_args"], 40)
    plain = f"{name} ({size})" if size else name
    how = [str(told[part]) for part in ("dtype", "load_in", "peft") if told.get(part)]
    how += [one for one in _asked(run).values() if one]
    precise = f"{plain}, {cut(', '.join(how), 60)}" if how else plain
    return name, plain, precise, f"{plain}, {cut(run.name, 60)}"


def _references_beside(runs: Sequence[RunFolder]) -> list[Path]:
    """Folders of reference classifiers to read along: the newest beside the runs, for data sets that lack one."""
    lacking: dict[str, set[Path]] = defaultdict(set)
    have = {
        str(task.told.get("dataset_fingerprint"))
        for run in runs
        if run.baseline and run.baseline != _BLIND
        for task in run.tasks
    }
    for run in runs:
        for task in run.tasks:
            mark = task.told.get("dataset_fingerprint")
            if mark and str(mark) not in have:
                lacking[str(mark)].add(run.folder.resolve().parent)
    read = {run.folder.resolve() for run in runs}
    found: list[Path] = []
    for mark, parents in lacking.items():
        there = sorted(one for parent in sorted(parents) for one in _finished_baselines(parent, mark))
        if there and there[-1][1].resolve() not in read | {one.resolve() for one in found}:
            found.append(there[-1][1])
    return found


def _finished_baselines(parent: Path, fingerprint: str) -> Iterator[tuple[str, Path]]:
    for path in parent.glob("*-baseline-*/manifest.json"):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            method = mapping(manifest.get("command")).get("baseline")
            tasks = mapping(manifest.get("tasks")).values()
            same = any(mapping(told).get("dataset_fingerprint") == fingerprint for told in tasks)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # being written, or damaged: nobody asked for it by name
        if method and method != _BLIND and same and manifest.get("finished"):
            yield str(manifest.get("started")), path.parent
