"""Guess from a table and a folder which column is which, and whether the files are images or volumes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from medmllm_plugins.data.core.fold_names import counted, fold_of
from medmllm_plugins.data.layouts.csv_rows import Row
from medmllm_plugins.data.layouts.user_files import NotFound, UserFiles, WithoutPicture, list_files
from medmllm_plugins.data.readers.image_reader import ARRAY, may_be_dicom, open_array
from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.utils.declared_model import few

NO_COLUMN: Final = "none"
"""What ``--group`` and ``--fold`` take for "there is no such column, do not look for one"."""
TICKS: Final = frozenset({"0", "1", "0.0", "1.0"})
_LOOKED_AT = 500
_LABELS = ("label", "labels", "class", "diagnosis", "dx", "category", "target", "grade", "finding", "findings", "y")
_LABELS_LATER = ("pathology", "finding labels", "image_label", "class_name", "classname", "type", "result")
_GROUPS = ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id", "subjectid", "case", "case_id")
_GROUPS_LATER = ("lesion_id", "lesion", "person", "person_id", "study", "study_id", "studyid", "mrn")
_SPLITS = ("fold", "folds", "split", "splits", "partition")
"""Words in the name of a column that says who is trained on and who is tested on."""
_PERHAPS_SPLITS = ("set", "subset", "usage", "phase")
"""Words that such a column may have in its name, as others have: the phase of a CT, say."""
_MOST_FOLDS = 20
"""A column with more values than that tells cases or dates, and not folds."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a table is which, and how each was found.

    Attributes:
        label: the column of classes; ``None`` where there is one of 0 and 1 for each class.
        ticks: the columns of 0 and 1 of a multi-label table without a label column.
        notes: one line for each choice that the user did not make.
    """

    image: str
    label: str | None
    group: str | None
    fold: str | None
    ticks: tuple[str, ...]
    notes: tuple[str, ...]


def dimensions(folder: Path, pattern: str | None, rows: Sequence[Row] | None, image: str | None) -> tuple[int, str]:
    """Return whether these are images or volumes, and the column that names them.

    ``rows`` are the table, ``None`` where folders are the labels; ``image`` is the column that the user names. For
    ``pattern`` see :func:`medmllm_plugins.data.layouts.user_files.list_files`.

    Returns:
        2 or 3, and the column; ``""`` without a table.

    Raises:
        DataError: there is nothing to read, or both images and volumes.
        OptionError: no column names files.
    """
    flat, deep = list_files(folder, pattern, 2), list_files(folder, pattern, 3)
    if not flat.files and not deep.files:
        got = f"none by the pattern {pattern!r}" if pattern else "none"
        raise DataError(
            f"{folder}: expected images (PNG, JPEG, TIFF, .npy, DICOM, …) or volumes (.nii.gz, .nrrd, DICOM series, "
            f"…), got {got}."
        )
    if rows is None:
        only_flat, only_deep = set(flat.files) - set(deep.files), set(deep.files) - set(flat.files)
        if only_flat and only_deep:
            raise DataError(
                f"{folder}: expected images or volumes, got both, such as {min(only_flat)} and {min(only_deep)}; "
                "choose by a pattern, --images 'FOLDER/**/*.png'."
            )
        if only_flat or only_deep:
            return (2 if only_flat else 3), ""
        return (3 if _is_volume(_whole(deep)) else 2), ""
    if rows and image is not None and image not in rows[0]:
        raise OptionError(f"Expected --image-column to be one of the columns {list(rows[0])}, got {image!r}.")
    named = (
        [(column, *_count_files(rows, column, flat), *_count_files(rows, column, deep)) for column in rows[0]]
        if rows
        else []
    )
    named = [match for match in named if image in (None, match[0])]
    best = max(named, key=lambda match: max(match[1], match[3]), default=None)
    if best is None or max(best[1], best[3]) == 0:
        expected = f"the column {image!r}" if image else f"a column among {list(rows[0]) if rows else []}"
        example = shown(rows[0][image]) if image and rows else "none"
        raise OptionError(
            f"Expected {expected} to name files below {folder}, got {example}; a cell is a path below that folder or "
            "a file's name. Give the column as --image-column, and the folder that the paths start from as --images."
        )
    column, in_flat, first_flat, in_deep, first_deep = best
    if in_flat != in_deep:
        return (2 if in_flat > in_deep else 3), column
    return (3 if _is_volume(first_deep or first_flat or folder) else 2), column


def columns(
    rows: Sequence[Row],
    image: str,
    *,
    label: str | None,
    group: str | None,
    fold: str | None,
    classes: Sequence[str],
    multilabel: bool,
    fold_names: Mapping[str, str] = MappingProxyType({}),
) -> Columns:
    """Find the columns that the user did not name.

    ``group`` and ``fold`` may be :data:`NO_COLUMN`; empty ``classes`` are taken from the table; ``fold_names`` are
    those of :func:`medmllm_plugins.data.core.fold_names.fold_of`.

    Raises:
        OptionError: no column has a name given, none can be recognised as the classes, or a value of a column of folds
            names none.
    """
    header = list(rows[0])
    for option, name in (("--label-column", label), ("--group", group), ("--fold", fold)):
        if name is not None and name not in header and not (name == NO_COLUMN and option != "--label-column"):
            raise OptionError(
                f"Expected {option} to be one of the columns {few(map(shown, header), 5)}, got {shown(name)}."
            )
    notes: list[str] = []
    fold = _fold_column(rows, fold, fold_names, {image, label, group}, notes)
    group = _optional(rows, group, (*_GROUPS, *_GROUPS_LATER), "groups", {image, label, fold}, notes)
    rest = [column for column in header if column not in (image, group, fold)]
    ticks: tuple[str, ...] = ()
    if label is None and multilabel:
        ticks = tuple(
            column for column in rest if (column in classes if classes else all(row[column] in TICKS for row in rows))
        )
        if ticks:
            notes.append(f"classes: one column of 0 and 1 each, {', '.join(map(repr, ticks))}")
    if label is None and not ticks:
        label = _label(rest)
        notes.append(f"classes: the column {label!r}")
    return Columns(image, label, group, fold, ticks, tuple(notes))


def _optional(
    rows: Sequence[Row],
    column: str | None,
    hints: Sequence[str],
    what: str,
    taken: set[str | None],
    notes: list[str],
) -> str | None:
    if column is not None:
        return None if column == NO_COLUMN and column not in rows[0] else column
    for hint in hints:
        for name in rows[0]:
            if name.lower() == hint and name not in taken:
                notes.append(f"{what}: the column {name!r}")
                return name
    return None


def _fold_column(
    rows: Sequence[Row], fold: str | None, names: Mapping[str, str], taken: set[str | None], notes: list[str]
) -> str | None:
    """Find the column of folds, and see that each of its values is understood.

    A column that looks like one is never passed over in silence: it is used, asked about or named in a note.
    """
    if fold is not None and (fold != NO_COLUMN or fold in rows[0]):
        _check_folds(rows, fold, names)
        return fold
    if names and fold == NO_COLUMN:
        raise OptionError("Expected --fold-map with a column of folds, got --fold none. Leave one of them out.")
    if fold == NO_COLUMN:
        return None
    by_name, others = [], []
    for column in rows[0]:
        values = {row[column] for row in rows}
        words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).lower()))
        known = {value for value in values if fold_of(value, names) is not None}
        if column in taken or len(values) > _MOST_FOLDS:
            continue
        if words & set(_SPLITS) or (words & set(_PERHAPS_SPLITS) and known):
            by_name.append(column)
        elif (words & set(_PERHAPS_SPLITS) and len(values) > 1) or (len(known) > 1 and known == values):
            others.append(column)
    if not by_name:
        if names:
            raise OptionError("Expected --fold-map with a column of folds, got none. Name the column with --fold.")
        notes += [_passed_over(rows, column) for column in others]
        return None
    chosen = min(by_name, key=lambda column: any(fold_of(row[column], names) is None for row in rows))
    _check_folds(rows, chosen, names)
    mapped = dict(sorted((value, str(fold_of(value, names))) for value in {row[chosen] for row in rows}))
    meanings = [f"{value} = {meaning}" for value, meaning in mapped.items() if value.casefold() != meaning]
    notes.append(f"folds: the column {chosen!r}{f' ({chr(44).join(meanings)})'.replace(',', ', ') if meanings else ''}")
    notes += [_passed_over(rows, column) for column in (*by_name, *others) if column != chosen]
    return chosen


def _passed_over(rows: Sequence[Row], column: str) -> str:
    values = sorted({row[column] for row in rows})
    return (
        f"folds: the column {column!r} looks like one of folds and is not used; its values are "
        f"{few(map(shown, values), 5)}; --fold {column!r} uses it"
    )


def _check_folds(rows: Sequence[Row], column: str, names: Mapping[str, str]) -> None:
    """Ask what the values of a split column mean that are not understood."""
    counts = Counter(row[column] for row in rows)
    unknown = sorted(value for value in counts if fold_of(value, names) is None)
    cells = {cell.casefold() for cell in counts}
    if unused := sorted(name for name in names if name.casefold() not in cells):
        raise OptionError(
            f"Expected --fold-map to name values of the column {column!r}, got {few(map(shown, unused), 5)}."
        )
    if not unknown:
        return
    named = [value for value in unknown if value]
    example = ",".join(f"{value}=FOLD" for value in named[:3])
    numbers = all(value.isdecimal() for value in counts)
    why = (
        "numbers, as of cross-validation, which do not say what is tested"
        if numbers
        else counted({value: counts[value] for value in unknown})
    )
    if numbers:
        ordered = sorted(counts, key=int)
        ends = {ordered[-1]: "test", **({ordered[-2]: "validation"} if len(ordered) > 2 else {})}
        example = ",".join(f"{value}={ends.get(value, 'train')}" for value in ordered)
    steps = ["Fill in the empty cells"] if "" in unknown else []  # which no --fold-map can name
    if named:
        steps.append(
            f"Say what each value means, such as --fold-map {example} (FOLD: train, validation, test, or none to leave "
            "its rows out)"
        )
    raise OptionError(
        f"Expected the column {column!r} to say train, validation or test, got {why}. {'. '.join(steps)}, or give "
        "--fold none to have folds made here."
    )


def _label(rest: Sequence[str]) -> str:
    if len(rest) == 1:
        return rest[0]
    for hint in (*_LABELS, *_LABELS_LATER):
        for column in rest:
            if column.lower() == hint:
                return column
    raise OptionError(f"Expected a column named like classes, got {list(rest)}. Give --label-column.")


def _count_files(rows: Sequence[Row], column: str, files: UserFiles) -> tuple[int, Path | None]:
    """Return how many files a column names, and the first of them; of a long table, in its first rows.

    Files are counted and not cells, since "0" and "1" of a label column may name ``0.png`` and ``1.png`` often.
    """
    named: dict[Path, None] = {}
    for row in rows[:_LOOKED_AT]:
        try:
            path = files.find(row[column]) if row[column] else None
        except (NotFound, WithoutPicture):
            continue
        if path is not None:
            named[path] = None
    return len(named), next(iter(named), None)


def _whole(files: UserFiles) -> Path:
    """Return the first file, or the folder that holds it as one of several DICOM slices below a class folder."""
    first = files.files[0]
    slices = files.series.get(first.parent, ())
    return first.parent if len(slices) > 1 and first.parent.parent != files.folder else first


def _is_volume(path: Path) -> bool:
    """Return whether an array or DICOM file or folder holds a volume, as its name does not tell."""
    if path.is_dir():
        return True
    if path.suffix.lower() == ARRAY:
        try:
            open_array(path)
        except DataError:
            return True
        return False
    if may_be_dicom(path):
        from medmllm_plugins.data.readers.dicom import shows_volume

        try:
            return shows_volume(path)
        except DataError:  # it is reported when the whole set is read
            return False
    return False
