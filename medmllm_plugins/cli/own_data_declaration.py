"""From the options of ``medmllm task new``, a table and a folder to the declaration of a data set."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.fold_names import LEFT_OUT, fold_of
from medmllm_plugins.data.core.label_warnings import same_spelling
from medmllm_plugins.data.layouts.csv_rows import Row, read_rows
from medmllm_plugins.data.layouts.table_options import FOLDERS, SEPARATOR
from medmllm_plugins.data.layouts.user_files import list_files
from medmllm_plugins.data.loading.column_guess import NO_COLUMN, TICKS, columns, dimensions
from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.utils.declared_model import few

MAX_CLASSES: Final = 50
"""More classes than that are taken for a mistake, such as a column of identifiers."""
MAX_ATTRIBUTE_VALUES: Final = 20
"""Columns with more values than that cannot be compared with the class."""
_SEPARATORS = (SEPARATOR, ";", ",")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTaskOptions:
    """The options of ``medmllm task new``, described by its help; ``None`` or empty if not given."""

    name: str
    images: str
    labels: str
    image_column: str | None = None
    label_column: str | None = None
    group: str | None = None
    fold: str | None = None
    fold_map: str = ""
    attributes: str = ""
    classes: str = ""
    positive: str | None = None
    modality: str = ""
    multilabel: bool = False
    ordinal: bool = False
    overwrite: bool = False
    output: str = ""
    unit: str | None = None
    frame: str | None = None


def declare_own_data(options: NewTaskOptions) -> tuple[DatasetSpec, list[str]]:
    """Return the declaration of a user's data set, and a note on each choice that the user did not make.

    Raises:
        OptionError: the options contradict each other, or a column cannot be identified.
        DataError: the table or the folder cannot be used.
    """
    if options.multilabel and options.ordinal:
        raise OptionError("Expected either --multilabel or --ordinal, got both.")
    folder, pattern = _folder_and_pattern(options.images)
    listed = _listed_classes(options.classes)
    if options.labels == FOLDERS:
        source = _labels_from_folders(options, folder, pattern)
    else:
        source = _labels_from_table(options, folder, pattern, list(listed))
    notes = [*source.notes]
    classes, names = _classes(source.cells, source.where, listed, options.multilabel)
    chosen = {"pattern": pattern, "names": names or None, "frame": options.frame, "unit": options.unit}
    layout_options = {**source.options, **{name: value for name, value in chosen.items() if value is not None}}
    if not options.classes:
        notes.append(f"classes: {', '.join(map(repr, classes))} (--classes for other names or another order)")
        if any(label.replace(".", "").isdigit() for label in classes):
            example = ",".join(f"{label}=NAME" for label in classes[:3])
            notes.append(f"classes are numbers, which mean nothing to a model; name them with --classes {example}")
    if options.unit is None and source.dimensions == 3:
        notes.append("unit: Hounsfield units where DICOM says so, else unknown; --unit HU for CT in other files")
    if not options.modality:
        notes.append("modality: 'medical image', as the question calls it; --modality for a better word")
    declaration: dict[str, Any] = {
        "name": options.name,
        "title": options.name,
        "layout": "table",
        "folder": str(folder),
        "modality": options.modality or "medical image",
        "kind": "multilabel" if options.multilabel else "ordinal" if options.ordinal else "multiclass",
        "dimensions": source.dimensions,
        "classes": {label: [] for label in classes},
        "options": layout_options,
    }
    if options.positive:
        declaration["positive"] = options.positive
    return parse_spec(declaration, options.name), notes


class _LabelSource(NamedTuple):
    """The text of each image's label, where it stands, and a note on each choice that the user did not make."""

    dimensions: int
    cells: Sequence[str]
    where: str
    options: Mapping[str, Any]
    notes: Sequence[str]


def _labels_from_folders(options: NewTaskOptions, folder: Path, pattern: str | None) -> _LabelSource:
    columns_given = (
        options.image_column,
        options.label_column,
        options.group,
        options.fold,
        options.fold_map,
        options.attributes,
    )
    if options.multilabel or any(columns_given):
        raise OptionError("Expected no columns and no --multilabel with --labels folders, got some.")
    depth, _ = dimensions(folder, pattern, None, None)
    notes = _fold_folders(folder, pattern, depth)
    return _LabelSource(depth, _folder_names(folder, pattern, depth), "folder names", {"labels": FOLDERS}, notes)


def _labels_from_table(
    options: NewTaskOptions, folder: Path, pattern: str | None, classes: Sequence[str]
) -> _LabelSource:
    fold_names = _fold_names(options.fold_map)
    table = Path(os.path.abspath(Path(options.labels).expanduser()))
    rows = _table(table)
    depth, image = dimensions(folder, pattern, rows, options.image_column)
    named = {"label": options.label_column, "group": options.group, "fold": options.fold}
    chosen = columns(rows, image, **named, classes=classes, multilabel=options.multilabel, fold_names=fold_names)
    notes = [] if options.image_column else [f"images: the column {image!r}"]
    notes += chosen.notes
    layout_options: dict[str, Any] = {
        "labels": table.relative_to(folder).as_posix() if table.is_relative_to(folder) else str(table)
    }
    if fold_names:
        layout_options["fold_names"] = fold_names
    for key in ("image", *named):
        if (column := getattr(chosen, key)) is not None:
            layout_options[f"{key}_column"] = column
    taken = {chosen.image, chosen.label, chosen.group, chosen.fold, *chosen.ticks}
    free = [column for column in rows[0] if column not in taken]
    if attributes := _attribute_columns(free, options.attributes):
        layout_options["attribute_columns"] = attributes
    elif testable := [column for column in free if 2 <= len({row[column] for row in rows}) <= MAX_ATTRIBUTE_VALUES]:
        names = ",".join(testable)
        notes.append(f"further columns: not used; --attributes {names} lets med_probe compare them with the class")
    if chosen.group is None and options.group != NO_COLUMN:
        notes.append("groups: none; give --group COLUMN if several images may be of one patient")
    cells, where = _cells(rows, chosen.label, chosen.ticks, options.multilabel, layout_options)
    return _LabelSource(depth, cells, where, layout_options, notes)


def _folder_and_pattern(images: str) -> tuple[Path, str | None]:
    """Return the folder, and the pattern below it if there is one."""
    path = Path(os.path.abspath(Path(images).expanduser()))
    if path.is_dir():
        return path, None
    if path.exists():
        raise OptionError(f"Expected --images to be a folder or a pattern, got the file {path}.")
    parts = path.parts
    first = next((index for index, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None:
        raise OptionError(f"Expected --images to be a folder, got none at {path}.")
    folder = Path(*parts[:first])
    if not folder.is_dir():
        raise OptionError(f"Expected --images to be a pattern below a folder, got no folder {folder}.")
    return folder, "/".join(parts[first:])


def _table(path: Path) -> list[Row]:
    faults = Faults(path.name, str(path))
    rows = [row for _, row in read_rows(path, (), faults)]
    faults.stop()
    if not rows:
        raise DataError(f"{path}: expected rows below the header, got none.")
    return rows


def _pairs(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield each part of ``a=b,c``, the text before its equals sign if there is one, and the text behind it."""
    for part in text.split(",") if text else ():
        before, _, behind = part.rpartition("=")
        yield part, before.strip(), behind.strip()


def _listed_classes(text: str) -> dict[str, str]:
    """Read ``a,b`` or ``0=a,1=b``: class names in the user's order, to what the table has for each."""
    classes: dict[str, str] = {}
    for _, cell, name in _pairs(text):
        if not name or name in classes:
            raise OptionError(f"Expected --classes to be names between commas, each once, got {text!r}.")
        classes[name] = cell or name
    return classes


def _folder_names(folder: Path, pattern: str | None, depth: int) -> list[str]:
    files = list_files(folder, pattern, depth)
    top = {path.name for path in folder.iterdir()}
    # DICOM files two folders down are slices of a series; right in a class folder they are single ones.
    series = [path for path in files.series if path.parent != folder or path.name not in top]
    slices = {file for path in series for file in files.series[path]}
    paths = [path for path in (*files.files, *series) if path not in slices]
    return [path.parent.name for path in paths if path.parent != folder]


def _fold_folders(folder: Path, pattern: str | None, depth: int) -> list[str]:
    """Return a note on folders that are named like folds, which are not used as such, if there are any."""
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
    for part, cell, fold in _pairs(text):
        if not cell or fold not in (*FOLDS, LEFT_OUT) or cell in names:
            raise OptionError(
                f"Expected --fold-map to be VALUE=FOLD between commas, each value once and FOLD one of "
                f"{', '.join(FOLDS)} and {LEFT_OUT}, got {shown(part)}."
            )
        names[cell] = fold
    return names


def _attribute_columns(free: Sequence[str], text: str) -> list[str]:
    """Read ``a,b``: columns that have no other use."""
    names = [name.strip() for name in text.split(",")] if text else []
    if len(set(names)) < len(names) or not set(names) <= set(free):
        raise OptionError(
            f"Expected --attributes to be among the columns {few(map(shown, free), 5)}, each once, got {shown(text)}."
        )
    return names


def _cells(
    rows: Sequence[Row], column: str | None, ticks: Sequence[str], multilabel: bool, options: dict[str, Any]
) -> tuple[list[str], str]:
    """Return all texts of the table that name a class, and where they are."""
    if column is None:
        if wrong := [tick for tick in ticks if any(row[tick] not in TICKS for row in rows)]:
            raise DataError(f"Expected the columns of classes to say 0 or 1, got other values in {wrong}.")
        return list(ticks), "columns of 0 and 1"
    cells = [row[column] for row in rows]
    if multilabel:
        separator = next((mark for mark in _SEPARATORS if any(mark in cell for cell in cells)), SEPARATOR)
        options["separator"] = separator
        cells = [part.strip() for cell in cells for part in cell.split(separator)]
    return [cell for cell in cells if cell], f"the column {column!r}"


def _classes(
    cells: Sequence[str], where: str, listed: Mapping[str, str], multilabel: bool
) -> tuple[list[str], dict[str, str]]:
    """Return class names in prompt order, and what the table says instead of a name."""
    if listed:
        return list(listed), {cell: name for name, cell in listed.items() if cell != name}
    names = sorted(set(cells))
    if names and all(cell.isdecimal() for cell in names):
        names.sort(key=int)
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"Expected at most {MAX_CLASSES} classes in {where}, got {len(names)}, such as {', '.join(names[:3])}; "
            "name another column with --label-column, or --multilabel if a cell holds several."
        )
    if len(names) < (1 if multilabel else 2):
        raise DataError(f"Expected at least two classes in {where}, got {', '.join(names) or 'none'}.")
    alike = [cell for cell in names if any(same_spelling(cell, other) for other in names if other != cell)]
    if alike:
        raise DataError(
            f"Expected classes that differ by more than case, blanks, punctuation, accents or look-alike letters in "
            f"{where}, got {shown(alike)}. Correct the labels, or list the classes with --classes if they do differ."
        )
    return names, {}
