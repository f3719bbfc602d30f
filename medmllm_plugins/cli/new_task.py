"""``medmllm task new``: a user's own images become a task, once everything about them has been checked."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.fold_names import LEFT_OUT, fold_of
from medmllm_plugins.data.core.label_warnings import same_spelling
from medmllm_plugins.data.layouts.csv_rows import Row, read_rows
from medmllm_plugins.data.layouts.user_files import list_files
from medmllm_plugins.data.layouts.user_table import FOLDERS, SEPARATOR, entries, size
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.column_guess import NO_COLUMN, TICKS, columns, dimensions
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.plugins.manager import get_manager, reset
from medmllm_plugins.plugins.task_files import read_task, read_yaml
from medmllm_plugins.prompts.task_names import declared_tasks, derived_tasks
from medmllm_plugins.prompts.task_settings import read_settings
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.identifiers import is_identifier
from medmllm_plugins.utils.user_dirs import tasks_folder

MAX_CLASSES: Final = 50
"""More classes than that are taken for a mistake, such as a column of identifiers."""
_SEPARATORS = (SEPARATOR, ";", ",")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTaskOptions:
    """What stands on the command line of ``medmllm task new``; ``None`` and ``""`` for what does not.

    Attributes:
        name: the task's name.
        images: a folder, or a glob pattern.
        labels: a CSV file, or ``"folders"``.
        image_column: the column that names images.
        label_column: the column of classes.
        group: the column of groups, or ``"none"``.
        fold: the column of folds, or ``"none"``.
        fold_map: ``"a=train,b=none"``: what values of that column mean, where they are no words for folds.
        classes: ``"a,b,c"``; ``"0=normal,1=pneumonia"`` names what the table has numbers for.
        positive: the class whose sensitivity counts.
        modality: what the images are, as it stands in the question.
        multilabel: whether an image may have several classes.
        ordinal: whether the classes are grades, in the order given.
        overwrite: whether a task file of that name may be replaced.
        output: the folder for the task file; default: that of the user's own tasks.
        unit: ``"HU"`` for CT volumes in files that do not say what their values mean.
        frame: which frame of DICOM films is shown.
    """

    name: str
    images: str
    labels: str
    image_column: str | None = None
    label_column: str | None = None
    group: str | None = None
    fold: str | None = None
    fold_map: str = ""
    classes: str = ""
    positive: str | None = None
    modality: str = ""
    multilabel: bool = False
    ordinal: bool = False
    overwrite: bool = False
    output: str = ""
    unit: str | None = None
    frame: str | None = None


def create(wishes: NewTaskOptions, say: Callable[[str], None]) -> Path:
    """Check a user's data and write a task for them.

    Args:
        wishes: what the user says.
        say: told, line by line, what was chosen and found.

    Returns:
        The task's YAML file. Nothing is written unless the whole data set is good.

    Raises:
        OptionError: the wishes do not go together, or the name is taken.
        DataError: something is wrong with the data; one error with all faults.
    """
    target = _target(wishes)
    spec, notes = _declare(wishes)
    for note in notes:
        say(f"chosen     {note}")
    say(f"reading    every {'volume' if spec.dimensions == 3 else 'image'} below {spec.folder} …")
    data = load_dataset(spec)
    for line in describe(data):
        say(line)
    for warning in data.warnings:
        say(f"warning    {warning}")
    if not data.select(("test",)):
        raise DataError(
            f"{wishes.name}: expected images in the test fold, which is what a task asks about, found none; correct "
            "the fold column, or give --fold none to have folds made."
        )
    text = task_text(spec)
    read_settings(spec.name, _metadata(spec))
    if target.exists() and not wishes.overwrite:  # it may have come while the images were read
        raise OptionError(f"{target} exists; give --overwrite to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, text)
    reset()  # so that this process finds the task too
    say(f"written    {target}")
    say(f"next       {_next_command(spec, target)}")
    say("           (pretrained=demo runs too, but that model only knows phantoms: its numbers mean nothing here)")
    return target


def _next_command(spec: DatasetSpec, target: Path) -> str:
    """The command that evaluates a published model on the new task; of volumes one that reads volumes."""
    model, checkpoint = ("medm_vl_ct", "ct-chest-3b") if spec.dimensions == 3 and _is_ct(spec) else ("medm_vl", "2d-3b")
    task = shlex.quote(spec.name if target.parent.is_relative_to(tasks_folder()) else str(target))
    return (
        f"lmms-eval --model {model} --model_args pretrained={checkpoint} --batch_size 1 --output_path results "
        f"--tasks {task}"
    )


def _is_ct(spec: DatasetSpec) -> bool:
    return spec.options.get("unit") == "HU"


def describe(data: Dataset) -> list[str]:
    """What a data set with the layout ``table`` holds, as lines for people."""
    spec, documents = data.spec, data.documents
    what = "volumes" if spec.dimensions == 3 else "images"
    kinds = Counter(_kind(data.folder / document.image) for document in documents)
    lines = [f"{what:<10} {len(documents)} ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"]
    sources = {entry.id: entry.source for entry in entries(spec, data.folder, Faults(spec.title, ""))}
    before, after = len({sources[document.id] for document in documents}), len({one.group for one in documents})
    column = spec.options.get("group_column")
    same = "identical volumes" if spec.dimensions == 3 else "near-duplicate images"
    joined = f"{before - after} joined to others by {same}" if before > after else f"none joined by {same}"
    lines.append(f"groups     {after} ({f'column {column!r}' if column else f'one for each of the {what}'}; {joined})")
    folds = spec.options.get("fold_column")
    made = f"column {folds!r}" if folds else "made here, no group divided"
    lines.append(f"folds      {made}; hash {data.folds_hash[:16]}")
    lines += counts_table(data)
    return lines + _sizes(data)


def counts_table(data: Dataset) -> list[str]:
    """Documents by class and fold, as lines for people."""
    counts = data.counts()
    rows = [["class", *FOLDS]]
    rows += [[label, *(str(counts[fold][label]) for fold in FOLDS)] for label in data.spec.labels]
    rows.append(["all", *(str(sum(one.fold == fold for one in data.documents)) for fold in FOLDS)])
    width = max(len(row[0]) for row in rows)
    return [f"{'':<10} {row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]


def _sizes(data: Dataset) -> list[str]:
    found = [size(data.spec, data.folder, document) for document in data.documents]
    axes = ("width", "height") if data.spec.dimensions == 2 else ("slices", "rows", "columns")
    sizes = zip(axes, zip(*(one for one, _ in found), strict=True), strict=True)
    lines = ["size       " + ", ".join(f"{axis} {_range(values)}" for axis, values in sizes) + " (min–median–max)"]
    if data.spec.dimensions == 3:
        spacings = zip(axes, zip(*(one for _, one in found), strict=True), strict=True)
        parts = ", ".join(f"between {axis} {_range(values)}" for axis, values in spacings)
        lines.append(f"spacing    {parts} mm (min–median–max)")
    return lines


def _range(values: Sequence[float]) -> str:
    three = [f"{value:.4g}" for value in (min(values), statistics.median_low(values), max(values))]
    return three[0] if len(set(three)) == 1 else "–".join(three)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "DICOM folders"
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower() or "without ending"


def task_text(spec: DatasetSpec) -> str:
    """The YAML file of a task with this data set, its declaration inside."""
    content = {"metadata": _metadata(spec)}
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return (
        f"task: {yaml.safe_dump(spec.name).splitlines()[0]}\n"
        "class: !function medmllm_plugins.host.tasks.ClassificationTask\n"
        f"output_type: generate_until\n{body}"
    )


def _metadata(spec: DatasetSpec) -> dict[str, Any]:
    dataset: dict[str, Any] = {"name": spec.name, "title": spec.title, "layout": spec.layout, "folder": spec.folder}
    dataset |= {"modality": spec.modality, "kind": spec.kind, "dimensions": spec.dimensions}
    dataset["classes"] = {label: list(synonyms) for label, synonyms in spec.classes.items()}
    if spec.positive is not None:
        dataset["positive"] = spec.positive
    dataset["options"] = dict(spec.options)
    return {"version": 1.0, "medmllm": {"protocol": "closed_set", "dataset": dataset}}


def tasks() -> list[dict[str, str]]:
    """Every task of this package, its plugins and the user: name, where it comes from, and its file."""
    found = {entry.name: (entry.plugin, entry.path) for entry in get_manager().tasks().values()}
    for name, task in declared_tasks().items():
        found.setdefault(name, ("data set", task.path))
    for name, derived in derived_tasks().items():
        found.setdefault(name, (found[derived.base][0], derived.path))
    return [{"name": name, "from": origin, "file": str(path)} for name, (origin, path) in sorted(found.items())]


def faulty_task_files() -> list[str]:
    """What is wrong with task files that were left out, a line each; faulty declarations of data sets are logged."""
    return [failure.message for failure in get_manager().failures if failure.stage == "task file"]


# -- names and places --------------------------------------------------------------------------------------------


def _target(wishes: NewTaskOptions) -> Path:
    """The file to write, if the name is good and free."""
    name = wishes.name
    if not is_identifier(name):
        raise OptionError(
            f"Expected the task's name to be lower-case letters, digits and underscores, the first no underscore, "
            f"found {name!r}."
        )
    folder = Path(os.path.abspath(Path(wishes.output).expanduser())) if wishes.output else tasks_folder()
    target = folder / f"{name}.yaml"
    entry = get_manager().tasks().get(name)
    owner = entry.path if entry is not None else None
    if owner is None and name in declared_tasks():
        owner = declared_tasks()[name].path
    if owner is None and name in dataset_specs():
        raise OptionError(f"A data set is called {name!r}; choose another name.")
    owner = owner or _host_task(name)
    if owner is not None and owner.resolve() != target.resolve():
        raise OptionError(f"The name {name!r} is taken by the task in {owner}; choose another.")
    if target.exists():
        if not wishes.overwrite:
            raise OptionError(f"{target} exists; give --overwrite to replace it.")
        if read_task(target)[0] != name or "medmllm" not in (read_yaml(target).get("metadata") or {}):
            raise OptionError(f"{target} is no task that this command wrote; choose another name or --output.")
    return target


def _host_task(name: str) -> Path | None:
    """The file of one of the host's own tasks of that name, which would hide ours; the host is not imported."""
    spec = importlib.util.find_spec("lmms_eval")
    wanted = re.compile(rb"^(task|group):[ \t]*[\"']?" + name.encode() + rb"[\"']?[ \t\r]*$", re.MULTILINE)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted((Path(location) / "tasks").rglob("*.yaml")):
            if wanted.search(path.read_bytes()):
                return path
    return None


# -- the declaration ---------------------------------------------------------------------------------------------


def _declare(wishes: NewTaskOptions) -> tuple[DatasetSpec, list[str]]:
    if wishes.multilabel and wishes.ordinal:
        raise OptionError("Expected either --multilabel or --ordinal, found both.")
    folder, pattern = _place(wishes.images)
    listed = _listed_classes(wishes.classes)
    fold_names = _fold_names(wishes.fold_map)
    options: dict[str, Any] = {"labels": FOLDERS}
    notes: list[str] = []
    if wishes.labels == FOLDERS:
        if wishes.multilabel or any((wishes.image_column, wishes.label_column, wishes.group, wishes.fold, fold_names)):
            raise OptionError("Expected no columns and no --multilabel with --labels folders, found some.")
        depth, _ = dimensions(folder, pattern, None, None)
        notes += _fold_folders(folder, pattern, depth)
        cells = _folder_names(folder, pattern, depth)
        where = "folder names"
    else:
        table = Path(os.path.abspath(Path(wishes.labels).expanduser()))
        rows = _table(table)
        depth, image = dimensions(folder, pattern, rows, wishes.image_column)
        if wishes.image_column is None:
            notes.append(f"images: the column {image!r}")
        chosen = columns(
            rows,
            image,
            label=wishes.label_column,
            group=wishes.group,
            fold=wishes.fold,
            classes=list(listed),
            multilabel=wishes.multilabel,
            fold_names=fold_names,
        )
        notes += chosen.notes
        if fold_names:
            options["fold_names"] = fold_names
        options["labels"] = table.relative_to(folder).as_posix() if table.is_relative_to(folder) else str(table)
        options["image_column"] = chosen.image
        for key, column in (("label", chosen.label), ("group", chosen.group), ("fold", chosen.fold)):
            if column is not None:
                options[f"{key}_column"] = column
        if chosen.group is None and wishes.group != NO_COLUMN:
            notes.append("groups: none; give --group COLUMN if several images may be of one patient")
        cells, where = _cells(rows, chosen.label, chosen.ticks, wishes.multilabel, options)
    if pattern is not None:
        options["pattern"] = pattern
    labels, names = _classes(cells, where, listed, wishes.multilabel)
    if names:
        options["names"] = names
    if not wishes.classes:
        notes.append(f"classes: {', '.join(map(repr, labels))} (--classes for other names or another order)")
        if any(label.replace(".", "").isdigit() for label in labels):
            example = ",".join(f"{label}=NAME" for label in labels[:3])
            notes.append(f"classes are numbers, which say nothing to a model; name them with --classes {example}")
    if wishes.frame is not None:
        options["frame"] = wishes.frame
    if wishes.unit is not None:
        options["unit"] = wishes.unit
    elif depth == 3:
        notes.append("unit: Hounsfield units where DICOM says so, else unknown; --unit HU for CT in other files")
    if not wishes.modality:
        notes.append("modality: 'medical image', as the question calls it; --modality for a better word")
    spec: dict[str, Any] = {
        "name": wishes.name,
        "title": wishes.name,
        "layout": "table",
        "folder": str(folder),
        "modality": wishes.modality or "medical image",
        "kind": "multilabel" if wishes.multilabel else "ordinal" if wishes.ordinal else "multiclass",
        "dimensions": depth,
        "classes": {label: [] for label in labels},
        "options": options,
    }
    return parse_spec({**spec, **({"positive": wishes.positive} if wishes.positive else {})}, wishes.name), notes


def _place(images: str) -> tuple[Path, str | None]:
    """The folder, and the pattern below it where one is given."""
    path = Path(os.path.abspath(Path(images).expanduser()))
    if path.is_dir():
        return path, None
    if path.exists():
        raise OptionError(f"Expected --images to be a folder or a pattern, found the file {path}.")
    parts = path.parts
    first = next((index for index, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None:
        raise OptionError(f"Expected --images to be a folder, found none at {path}.")
    folder = Path(*parts[:first])
    if not folder.is_dir():
        raise OptionError(f"Expected --images to be a pattern below a folder, found no folder {folder}.")
    return folder, "/".join(parts[first:])


def _table(path: Path) -> list[Row]:
    faults = Faults(path.name, str(path))
    rows = [row for _, row in read_rows(path, (), faults)]
    faults.stop()
    if not rows:
        raise DataError(f"{path}: expected rows below the header, found none.")
    return rows


def _listed_classes(text: str) -> dict[str, str]:
    """Class names in the user's order, to what the table has for each."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        cell, _, name = (piece.strip() for piece in part.rpartition("="))
        if not name or name in found:
            raise OptionError(f"Expected --classes to be names between commas, each once, found {text!r}.")
        found[name] = cell or name
    return found


def _folder_names(folder: Path, pattern: str | None, depth: int) -> list[str]:
    files = list_files(folder, pattern, depth)
    top = {path.name for path in folder.iterdir()}
    # DICOM files two folders down are slices of a series; right in a class folder they are single ones.
    series = [path for path in files.series if path.parent != folder or path.name not in top]
    slices = {file for path in series for file in files.series[path]}
    found = [path for path in (*files.files, *series) if path not in slices]
    return [path.parent.name for path in found if path.parent != folder]


def _fold_folders(folder: Path, pattern: str | None, depth: int) -> list[str]:
    """A note on folders that are named like folds, which are not used as such; none where there are none."""
    above = {
        part
        for path in list_files(folder, pattern, depth).files
        for part in path.relative_to(folder).parts[:-2]
        if fold_of(part, {}) is not None
    }
    if not above:
        return []
    return [
        f"folds: the folders {', '.join(map(repr, sorted(above)))} look like folds and are not used; to keep them, "
        "write a table with a column that says train, validation or test, and give it as --labels"
    ]


def _fold_names(text: str) -> dict[str, str]:
    """Read ``a=train,b=none``: values of the column of folds, to what they mean."""
    names: dict[str, str] = {}
    for part in text.split(",") if text else ():
        cell, _, fold = (piece.strip() for piece in part.rpartition("="))
        if not cell or fold not in (*FOLDS, LEFT_OUT) or cell in names:
            raise OptionError(
                f"Expected --fold-map to be VALUE=FOLD between commas, each value once and FOLD one of "
                f"{', '.join(FOLDS)} and {LEFT_OUT}, got {shown(part)}."
            )
        names[cell] = fold
    return names


def _cells(
    rows: Sequence[Row], column: str | None, ticks: Sequence[str], multilabel: bool, options: dict[str, Any]
) -> tuple[list[str], str]:
    """Everything that the table has for a class, and where."""
    if column is None:
        wrong = [tick for tick in ticks if any(row[tick] not in TICKS for row in rows)]
        if wrong:
            raise DataError(f"Expected the columns of classes to say 0 or 1, found others in {wrong}.")
        return list(ticks), "columns of 0 and 1"
    cells = [row[column] for row in rows]
    if multilabel:
        separator = next((one for one in _SEPARATORS if any(one in cell for cell in cells)), SEPARATOR)
        options["separator"] = separator
        cells = [part.strip() for cell in cells for part in cell.split(separator)]
    return [cell for cell in cells if cell], f"the column {column!r}"


def _classes(
    cells: Sequence[str], where: str, listed: Mapping[str, str], multilabel: bool
) -> tuple[list[str], dict[str, str]]:
    """Class names in prompt order, and what the table says instead of a name."""
    if listed:
        return list(listed), {cell: name for name, cell in listed.items() if cell != name}
    found = sorted(set(cells))
    if found and all(cell.isdecimal() for cell in found):
        found.sort(key=int)
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"Expected at most {MAX_CLASSES} classes in {where}, found {len(found)}, such as {', '.join(found[:3])}; "
            "name another column with --label-column, or --multilabel if a cell holds several."
        )
    if len(found) < (1 if multilabel else 2):
        raise DataError(f"Expected at least two classes in {where}, found {', '.join(found) or 'none'}.")
    alike = [cell for cell in found if any(same_spelling(cell, other) for other in found if other != cell)]
    if alike:
        raise DataError(
            f"Expected classes that differ by more than case, blanks, punctuation, accents or look-alike letters in "
            f"{where}, got {shown(alike)}. Correct the labels, or list the classes with --classes if they do differ."
        )
    return found, {}
