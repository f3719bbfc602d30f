"""What a user's table or class folders say about each image, before any image is read."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from medmllm_plugins.data.core.data_faults import Faults, relative
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.core.fold_names import LEFT_OUT, counted, fold_of, vocabulary
from medmllm_plugins.data.layouts.csv_rows import Row, read_rows
from medmllm_plugins.data.layouts.table_options import FOLDERS, TableOptions, table_options
from medmllm_plugins.data.layouts.user_files import NotFound, UserFiles, WithoutPicture, list_files, without_ending
from medmllm_plugins.data.readers.dicom_kinds import count_kinds
from medmllm_plugins.errors import shown

logger = logging.getLogger(__name__)

Label: TypeAlias = str | tuple[str, ...]
_TICKS: Final = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True, slots=True)
class Entry:
    """An image with what the table or its folder says.

    Attributes:
        id: its path below the set's folder without the ending.
        source: its group before near-duplicates are joined.
        fold: its fold if the table has one.
        attributes: further columns and their text.
    """

    path: Path
    id: str
    label: Label
    source: str
    fold: Fold | None = None
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that apply: one, or of a multi-label set any number."""
        return (self.label,) if isinstance(self.label, str) else self.label


def entries(spec: DatasetSpec, folder: Path, faults: Faults) -> list[Entry]:
    """Read the table, or list the class folders.

    Raises:
        DataError: an option is wrong.
    """
    options = table_options(spec)
    files = _list_by_patterns(folder, options.pattern, spec.dimensions)
    for closed in files.closed:
        faults.add(f"{closed}: expected a folder that can be listed, got a refusal. Check its permissions")
    if files.without_pictures:
        kinds = count_kinds(files.without_pictures.values())
        logger.warning(
            "%s: %d DICOM objects without pictures left out (%s)", spec.title, len(files.without_pictures), kinds
        )
    if options.labels == (FOLDERS,):
        return _from_folders(spec, options, files, faults)
    return _TableReader(spec, options, files, faults).entries()


def _list_by_patterns(folder: Path, patterns: Sequence[str], dimensions: int) -> UserFiles:
    """List the files of the first pattern that matches any."""
    files = list_files(folder, patterns[0] if patterns else None, dimensions)
    for pattern in patterns[1:]:
        if files.files:
            break
        files = list_files(folder, pattern, dimensions)
    return files


def _from_folders(spec: DatasetSpec, options: TableOptions, files: UserFiles, faults: Faults) -> list[Entry]:
    classes = {**{label: label for label in spec.labels}, **options.names}
    folders = ", ".join(f"{name}/" for name in classes)
    listed = []
    # DICOM files in a class folder are single ones; in a folder of their own they are a series.
    series = [path for path in files.series if path.name not in classes]
    slices = {file for path in series for file in files.series[path]}
    for path in sorted([*(path for path in files.files if path not in slices), *series]):
        if path in files.outside or any(file in files.outside for file in files.series.get(path, ())):
            faults.file(f"{path}: expected a file below {files.folder}, got a link that leads out of the folder")
        elif path.parent.name not in classes or path.parent == files.folder:
            faults.add(f"{path}: expected images in the class folders {folders} only, got one in {path.parent.name}/")
        else:
            identifier = _identifier(path, files)
            source = _source(options, path, identifier, faults)
            listed.append(Entry(path, identifier, classes[path.parent.name], source, cast(Fold | None, options.fold)))
    for path in sorted(files.outside - set(files.files)):
        faults.file(f"{path}: expected a folder, got a link that leads out of {files.folder}")
    if not listed:
        faults.add(f"{files.folder}: expected the class folders {folders} with images, got none")
    return listed


class _TableReader:
    """Reads the entries of a table; what is wrong goes to ``faults``."""

    def __init__(self, spec: DatasetSpec, options: TableOptions, files: UserFiles, faults: Faults) -> None:
        assert options.image_column is not None
        self._image_column = options.image_column
        self._options, self._files, self._faults = options, files, faults
        tables = [files.folder / Path(name).expanduser() for name in options.labels]
        self._table = next((path for path in tables if path.exists()), tables[0])
        ticks = _ticked_columns(spec, options) if spec.kind == "multilabel" and options.label_column is None else {}
        columns = (options.image_column, options.label_column, options.group_column, options.fold_column, *ticks)
        self._columns = [column for column in (*columns, *options.attribute_columns) if column]
        # A multi-label cell without text is an image without findings.
        self._may_be_empty = {
            *options.attribute_columns,
            *([options.label_column] if spec.kind == "multilabel" else []),
        }
        self._read_label = _label_reader(spec, options)
        self._fold_lists = _fold_lists(options, files, faults)
        self._entries: dict[Path, Entry] = {}
        self._lines: dict[Path, list[int]] = {}
        self._labels: dict[Path, set[Label]] = {}
        self._left_out: set[Path] = set()
        self._unknown_folds: Counter[str] = Counter()

    def entries(self) -> list[Entry]:
        """Read all rows."""
        for line, row in read_rows(self._table, self._columns, self._faults):
            self._read_row(line, row)
        self._check_rows()
        _count_unused(self._table, self._files, {*self._entries, *self._left_out})
        return list(self._entries.values())

    def _read_row(self, line: int, row: Row) -> None:
        where, cell = f"{self._table}, line {line}", row[self._image_column]
        empty = [column for column in self._columns if not row[column] and column not in self._may_be_empty]
        if empty:
            self._faults.file(f"{where}: expected text in every column used, got none in {', '.join(map(repr, empty))}")
            return
        try:
            path = self._files.find(cell)
        except WithoutPicture:  # counted with all others that are listed
            return
        except NotFound as error:
            self._faults.file(f"{where}: expected {shown(cell)} to be a file below {self._files.folder}, got {error}")
            return
        try:
            label = self._read_label(row)
        except ValueError as error:
            self._faults.add(f"{where}: {error}")
            return
        fold = self._fold(path, row)
        if fold == LEFT_OUT:
            return
        self._lines.setdefault(path, []).append(line)
        self._labels.setdefault(path, set()).add(label)
        identifier = _identifier(path, self._files)
        group_column = self._options.group_column
        source = row[group_column] if group_column else _source(self._options, path, identifier, self._faults)
        attributes = tuple((column, row[column]) for column in self._options.attribute_columns)
        self._entries.setdefault(path, Entry(path, identifier, label, source, cast(Fold | None, fold), attributes))

    def _fold(self, path: Path, row: Row) -> str | None:
        """Return the fold of a row, ``None`` if the table has none, or :data:`LEFT_OUT` for a row that is not used."""
        column = self._options.fold_column
        if column:
            fold = fold_of(row[column], self._options.fold_names)
            if fold is None:
                self._unknown_folds[row[column]] += 1
            elif fold == LEFT_OUT:
                self._left_out.add(path)
            return fold or LEFT_OUT
        if self._options.fold_files:
            return self._fold_lists.get(path, LEFT_OUT)
        return self._options.fold

    def _check_rows(self) -> None:
        for path, lines in self._lines.items():
            if len(lines) > 1:
                labels = self._labels[path]
                what = f"{len(labels)} labels" if len(labels) > 1 else "the same label"
                self._faults.add(
                    f"{self._table}, lines {', '.join(map(str, lines))}: expected one row for "
                    f"{relative(path, self._files.folder)}, got {len(lines)} with {what}"
                )
        if self._unknown_folds:
            self._faults.add(
                f"{self._table}: expected {self._options.fold_column!r} to name a fold in every row ({vocabulary()}), "
                f"got {counted(self._unknown_folds)}. Say what these mean with --fold-map "
                "VALUE=train,VALUE=test,VALUE=none (in a task's file: `fold_names`)."
            )
        if not self._lines and not self._unknown_folds:
            self._faults.add(
                f"{self._table}: expected rows that name images below {self._files.folder}, got none that can be used"
            )


def _source(options: TableOptions, path: Path, identifier: str, faults: Faults) -> str:
    """Return the group of an image without a group column: by the pattern, or its own."""
    if options.group_pattern is None:
        return identifier
    match = re.search(options.group_pattern, path.name)
    if match is None:
        faults.file(f"{path}: expected a name that contains {options.group_pattern!r}, got another")
        return identifier
    return match[1] if match.re.groups else match[0]


def _fold_lists(options: TableOptions, files: UserFiles, faults: Faults) -> dict[Path, Fold]:
    """Read the text files that list the images of each fold."""
    folds: dict[Path, Fold] = {}
    for fold, name in options.fold_files.items():
        text_file = files.folder / name
        try:
            lines = text_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            faults.add(f"{text_file}: expected a list of images in UTF-8, got a file that cannot be read ({error})")
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                path = files.find(line.strip())
            except WithoutPicture:
                continue
            except NotFound as error:
                faults.file(f"{text_file}, line {number}: expected {shown(line.strip())} to be an image, got {error}")
                continue
            if folds.setdefault(path, cast(Fold, fold)) != fold:
                faults.add(f"{text_file}, line {number}: expected an image in one list, got {shown(line)} in two")
    return folds


def _ticked_columns(spec: DatasetSpec, options: TableOptions) -> dict[str, str]:
    """Return columns of 0 and 1, to the finding each is for."""
    column_of = {label: column for column, label in options.names.items()}
    return {column_of.get(label, label): label for label in spec.labels}


def _count_unused(table: Path, files: UserFiles, used: set[Path]) -> None:
    inside = {file for path in used if path in files.series for file in files.series[path]}
    unused = [path for path in files.files if path not in used and path not in inside]
    if unused:
        logger.warning(
            "%s: %d of %d files below %s are in no row and are not used, such as %s",
            table.name,
            len(unused),
            len(files.files),
            files.folder,
            relative(unused[0], files.folder),
        )


def _label_reader(spec: DatasetSpec, options: TableOptions) -> Callable[[Mapping[str, str]], Label]:
    """Return a function that reads the label of a row; it raises ``ValueError`` with the text of a fault."""
    known = {**{label: label for label in spec.labels}, **options.names}
    ticks = _ticked_columns(spec, options)
    column = options.label_column

    def look_up(cell: str) -> str:
        if cell not in known:
            raise ValueError(f"expected {column!r} to be one of {list(known)}, got {shown(cell)}")
        return known[cell]

    def findings(row: Mapping[str, str]) -> tuple[str, ...]:
        assert column is not None
        parts = [part.strip() for part in row[column].split(options.separator)]
        if options.no_finding in parts and len(set(parts)) > 1:
            raise ValueError(f"expected {options.no_finding!r} alone in the cell, got {shown(row[column])}")
        present = {look_up(part) for part in parts if part and part != options.no_finding}
        return tuple(label for label in spec.labels if label in present)

    def ticked(row: Mapping[str, str]) -> tuple[str, ...]:
        for name in ticks:
            if row[name] not in _TICKS:
                raise ValueError(f"expected {name!r} to be 0 or 1, got {shown(row[name])}")
        return tuple(label for name, label in ticks.items() if _TICKS[row[name]])

    def single(row: Mapping[str, str]) -> str:
        assert column is not None
        return look_up(row[column])

    if spec.kind != "multilabel":
        return single
    return ticked if column is None else findings


def _identifier(path: Path, files: UserFiles) -> str:
    name = relative(path, files.folder)
    return name if path in files.series else without_ending(name)
