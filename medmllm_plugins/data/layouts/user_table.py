"""Layout of a user's own images or volumes, labelled by a CSV table or by the folders they lie in."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults, relative
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.dicom_set_checks import DicomDocument, dicom_warnings
from medmllm_plugins.data.core.documents import FOLDS, Document, Fold
from medmllm_plugins.data.core.duplicates import join_groups
from medmllm_plugins.data.core.fold_names import LEFT_OUT, counted, fold_of, vocabulary
from medmllm_plugins.data.core.folds import grouped_folds, rarest_labels
from medmllm_plugins.data.core.label_warnings import two_labels
from medmllm_plugins.data.core.leaks import MAX_COMPARED, picture_facts, similar, voxels_digest
from medmllm_plugins.data.layouts.class_folders import repeated_ids
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.data.layouts.layout_registry import FileLayout
from medmllm_plugins.data.layouts.user_files import NotFound, UserFiles, WithoutPicture, list_files, without_ending
from medmllm_plugins.data.readers.dicom_kinds import count_kinds
from medmllm_plugins.data.readers.image_reader import picture_size, read_picture
from medmllm_plugins.data.readers.picture_options import PictureOptions
from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.errors import DataError, one_line, shown

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

logger = logging.getLogger(__name__)

FOLDERS: Final = "folders"
"""Value of the option ``labels``: the name of the folder an image lies in is its class."""
SEPARATOR: Final = "|"
_TICKS: Final = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """The options of a declaration with this layout.

    Attributes:
        labels: a CSV file, absolute or below the set's folder; several names for the first of them that is there; or
            ``"folders"``.
        image_column: the column that names images, see :meth:`medmllm_plugins.data.layouts.user_files.UserFiles.find`.
        label_column: the column that holds classes. In a multi-label table it may be left out: then there is a column
            for each class, of its name, that says 0 or 1.
        group_column: the column of what must stay together (patient, lesion, case).
        group_pattern: in place of a group column, a regular expression found in the file's name, whose first group, or
            the whole of it, is the group.
        fold_column: the column of folds, in the words of :data:`medmllm_plugins.data.core.fold_names.FOLD_NAMES`.
        fold_names: what else that column says, to the fold it means, or to ``"none"`` for rows that are not used.
        fold_files: in place of a fold column, for each fold a text file with the name of an image on each line. Images
            in none of them are not used.
        fold: in place of both, the fold of all.
        pattern: a glob pattern below the folder; other files are left alone. Of several the first that finds files.
        separator: what stands between the findings of a multi-label cell.
        no_finding: what a multi-label cell says when there is none, beside nothing at all.
        names: what the table says, in cells or as the name of a column of 0 and 1, to the class it means, where the two
            differ (``{"0": normal, "1": pneumonia}``).
        unit: ``"HU"`` for CT volumes in files that cannot say so (all but DICOM).
        frame: which frame of a DICOM film is shown, see :class:`medmllm_plugins.data.readers.picture_options.PictureOptions`.
        window: through which window DICOM pictures are shown, see the same.
    """

    labels: tuple[str, ...]
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    fold_column: str | None = None
    fold_names: Mapping[str, str] = field(default_factory=dict)
    fold_files: Mapping[Fold, str] = field(default_factory=dict)
    fold: Fold | None = None
    pattern: tuple[str, ...] = ()
    separator: str = SEPARATOR
    no_finding: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    unit: str | None = None
    frame: str | None = None
    window: str | None = None

    @property
    def picture(self) -> PictureOptions:
        """How pictures are shown."""
        return PictureOptions(self.frame or "middle", self.window)


def table_options(spec: DatasetSpec) -> TableOptions:
    """Check the options of a declaration.

    Raises:
        DataError: one is missing, unknown or of the wrong type, or does not go with the others.
    """
    given = dict(spec.options)
    known = [one.name for one in fields(TableOptions)]
    if unknown := sorted(shown(key) for key in given if key not in known):
        raise DataError(f"{spec.title}: unknown options {', '.join(unknown[:5])}; layout 'table' takes {known}.")
    for key, value in given.items():
        if value is not None and not _good_type(key, value):
            wanted = (
                "a mapping to text" if key in _MAPPINGS else "text or a list of it" if key in _ALTERNATIVES else "text"
            )
            raise DataError(f"{spec.title}: expected the option `{key}` to be {wanted}, got {shown(value)}.")
    if not given.get("labels"):
        raise DataError(f'{spec.title}: expected the option `labels`, a CSV file or "{FOLDERS}", found none.')
    given = {key: value for key, value in given.items() if value is not None}
    for key in _ALTERNATIVES:
        value = given.get(key, ())
        given[key] = (value,) if isinstance(value, str) else tuple(value)
    names = {str(cell): str(label) for cell, label in given.pop("names", {}).items()}
    if unknown := sorted(set(names.values()) - set(spec.labels)):
        raise DataError(f"{spec.title}: expected `names` to lead to classes, got {shown(unknown)}.")
    fold_names = {str(cell): fold for cell, fold in given.pop("fold_names", {}).items()}
    options = TableOptions(**given, names=names, fold_names=fold_names)
    _check_together(spec, options)
    return options


_MAPPINGS: Final = ("names", "fold_files", "fold_names")
_ALTERNATIVES: Final = ("labels", "pattern")
_LONGEST_OPTION: Final = 250


def _good_type(key: str, value: object) -> bool:
    if key in ("fold_files", "fold_names"):
        return isinstance(value, Mapping) and all(map(_is_option_text, value.values()))
    if key in _MAPPINGS:
        return isinstance(value, Mapping) and all(isinstance(one, str | int) for one in value.values())
    several = value if key in _ALTERNATIVES and isinstance(value, list) else [value]
    return bool(several) and all(map(_is_option_text, several))


def _is_option_text(value: object) -> bool:
    """Whether a value can be a column, a file or a pattern; a disk refuses other names with errors of many kinds."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_OPTION and "\0" not in value


def _check_together(spec: DatasetSpec, options: TableOptions) -> None:
    columns = (options.image_column, options.label_column, options.group_column, options.fold_column)
    if options.labels == (FOLDERS,):
        if spec.kind == "multilabel":
            raise DataError(f"{spec.title}: a folder is one class; expected a table for a multi-label set.")
        if any(columns):
            raise DataError(f"{spec.title}: expected no columns with labels: {FOLDERS}, found some.")
    else:
        if options.image_column is None:
            raise DataError(f"{spec.title}: expected the option `image_column`, found none.")
        if options.label_column is None and spec.kind != "multilabel":
            raise DataError(f"{spec.title}: expected the option `label_column`, found none.")
        named = [column for column in columns if column]
        if len(set(named)) < len(named):
            raise DataError(f"{spec.title}: expected a column of its own for each purpose, found {named}.")
    if options.group_column and options.group_pattern:
        raise DataError(f"{spec.title}: expected `group_column` or `group_pattern`, found both.")
    if options.group_pattern:
        try:
            re.compile(options.group_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise DataError(
                f"{spec.title}: expected `group_pattern` to be a regular expression, got {one_line(error)}"
            ) from None
    if sum(map(bool, (options.fold_column, options.fold_files, options.fold))) > 1:
        raise DataError(f"{spec.title}: expected one of `fold_column`, `fold_files` and `fold`, found several.")
    if unknown := {*options.fold_files, *([options.fold] if options.fold else [])} - set(FOLDS):
        raise DataError(f"{spec.title}: expected folds among {list(FOLDS)}, got {shown(sorted(map(str, unknown)))}.")
    if strange := set(options.fold_names.values()) - {*FOLDS, LEFT_OUT}:
        raise DataError(
            f"{spec.title}: expected `fold_names` to lead to train, validation, test or {LEFT_OUT}, got "
            f"{shown(sorted(strange))}."
        )
    if options.fold_names and not options.fold_column:
        raise DataError(f"{spec.title}: expected `fold_column` beside `fold_names`, got none.")
    if options.no_finding and spec.kind != "multilabel":
        raise DataError(f"{spec.title}: `no_finding` is for multi-label sets.")
    if options.unit not in (None, "HU", "any") or (options.unit and spec.dimensions != 3):
        raise DataError(f'{spec.title}: expected `unit` to be "HU" or "any", in a set of volumes, found otherwise.')
    if (options.frame or options.window) and spec.dimensions != 2:
        raise DataError(f"{spec.title}: `frame` and `window` are options of sets of images, got a set of volumes.")
    options.picture  # noqa: B018  # raises where a value is wrong


@dataclass(frozen=True, slots=True)
class Entry:
    """An image with what the table or its folder says.

    Attributes:
        path: the file or series folder.
        id: its path below the set's folder without the ending.
        label: its class, or findings in class order.
        source: its group before near-duplicates are joined.
        fold: its fold where the table has one.
    """

    path: Path
    id: str
    label: str | tuple[str, ...]
    source: str
    fold: Fold | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What reading a file told.

    Attributes:
        content: a digest that is equal for equal contents.
        thumbnail: of an image its thumbnail, ``[32, 32]``; ``None`` where it is not to be compared.
    """

    content: str
    thumbnail: npt.NDArray[np.float32] | None = None


class Table(FileLayout):
    """Images or volumes in a folder, and a table with a row for each; or folders that are named like the classes.

    A document's id is its path below the folder without the ending, so that two files must not differ by their ending
    alone. Its group is that of the group column or pattern, or its own; groups that share a picture (near-duplicates,
    see :mod:`medmllm_plugins.data.core.duplicates`; of volumes, and beyond
    :data:`medmllm_plugins.data.core.leaks.MAX_COMPARED` images, identical ones) are joined. Folds that the set states are
    taken as they are, but where it states train and no validation, a fifth of train, by group, becomes validation.
    Otherwise folds are :func:`medmllm_plugins.data.core.folds.grouped_folds` with seed 0.

    Files that no row names are counted in the log and left alone. A row that cannot be used (no such file, a path that
    leads out of the folder, an empty cell, a damaged file) is a fault of one file; what makes the table itself
    doubtful (missing columns, unknown classes, an image in two rows) is a fault of the set.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read and check the whole set; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        listed = entries(spec, folder, faults)
        for fault in repeated_ids((entry.id, str(entry.path)) for entry in listed):
            faults.add(f"{fault}; rename one, or leave it out by the pattern")
        found = self._read_all(spec, folder, [entry.path for entry in listed], faults)
        faults.stop()

        listed = [entry for entry in listed if entry.path in found]
        groups = _joined(listed, [found[entry.path] for entry in listed])
        folds = _folds(listed, groups)
        rows = list(zip(listed, groups, folds, strict=True))
        frame = table_options(spec).frame if spec.dimensions == 2 else ""
        for doubt in dicom_warnings(
            [DicomDocument(entry.path, group, fold) for entry, group, fold in rows], frame=frame
        ):
            faults.warn(doubt)
        for warning in two_labels(
            [found[entry.path].content for entry in listed],
            [entry.id for entry in listed],
            [_labels(entry) for entry in listed],
            "volume" if spec.dimensions == 3 else "image",
        ):
            faults.warn(warning)
        return [
            Document(id=entry.id, image=relative(entry.path, folder), label=entry.label, group=group, fold=fold)
            for entry, group, fold in rows
        ]

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Read the document's picture or volume.

        See :func:`medmllm_plugins.data.readers.image_reader.read_picture` and
        :func:`medmllm_plugins.data.readers.volumes.read_volume` for the errors.
        """
        path = folder / document.image
        options = table_options(spec)
        return _volume(path, options) if spec.dimensions == 3 else read_picture(path, options.picture)

    def look(self, spec: DatasetSpec, folder: Path, path: Path) -> Seen:
        """Read a file whole, as the check before an evaluation; a subclass may know a cheaper one.

        Raises:
            DataError: it is no good.
        """
        if spec.dimensions == 3:
            return Seen(voxels_digest(_volume(path, table_options(spec))))
        facts = picture_facts(read_picture(path, table_options(spec).picture))
        return Seen(facts.pixels, facts.thumbnail)

    def _read_all(self, spec: DatasetSpec, folder: Path, paths: Sequence[Path], faults: Faults) -> dict[Path, Seen]:
        few = len(paths) <= MAX_COMPARED
        if spec.dimensions == 2 and not few:
            logger.warning("%s: more than %d images, so only identical ones are grouped", spec.title, MAX_COMPARED)

        def look(path: Path) -> Seen | str:
            try:
                seen = self.look(spec, folder, path)
            except DataError as error:
                return str(error)
            return seen if few else Seen(seen.content)

        with ThreadPoolExecutor(max_workers=reader_threads()) as pool:
            results = list(pool.map(look, paths))
        found = {}
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, str):
                faults.file(result)
            else:
                found[path] = result
        return found


def entries(spec: DatasetSpec, folder: Path, faults: Faults) -> list[Entry]:
    """What the table or the folders say, before any image is read.

    Args:
        spec: the declaration.
        folder: the data set's folder.
        faults: what is wrong goes here.

    Raises:
        DataError: an option is wrong.
    """
    options = table_options(spec)
    files = _listed(folder, options.pattern, spec.dimensions)
    for closed in files.closed:
        faults.add(f"{closed}: expected a folder that can be listed, found that it cannot; see its permissions")
    if files.without_pictures:
        kinds = count_kinds(files.without_pictures.values())
        logger.warning(
            "%s: %d DICOM objects without pictures left out (%s)", spec.title, len(files.without_pictures), kinds
        )
    if options.labels == (FOLDERS,):
        return _from_folders(spec, options, files, faults)
    return _from_table(spec, options, files, faults)


def size(spec: DatasetSpec, folder: Path, document: Document) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and spacing of a good document, from its header.

    Returns:
        Of an image width and height in pixels, and no spacing; of a volume both along z, y and x, in voxels and mm.

    Raises:
        DataError: the header cannot be read any more.
    """
    path = folder / document.image
    if spec.dimensions == 2:
        return picture_size(path), ()
    from medmllm_plugins.data.readers.volumes import volume_facts

    facts = volume_facts(path)
    return facts.shape, facts.spacing


def _listed(folder: Path, patterns: Sequence[str], dimensions: int) -> UserFiles:
    found = list_files(folder, patterns[0] if patterns else None, dimensions)
    for pattern in patterns[1:]:
        if found.files:
            break
        found = list_files(folder, pattern, dimensions)
    return found


def _table_file(options: TableOptions, folder: Path) -> Path:
    """The first of the tables named that is there; where none is, the first."""
    paths = [folder / Path(name).expanduser() for name in options.labels]
    return next((path for path in paths if path.exists()), paths[0])


def _from_folders(spec: DatasetSpec, options: TableOptions, files: UserFiles, faults: Faults) -> list[Entry]:
    classes = {**{label: label for label in spec.labels}, **options.names}
    folders = ", ".join(f"{name}/" for name in classes)
    found = []
    # DICOM files in a class folder are single ones; in a folder of their own they are a series.
    series = [path for path in files.series if path.name not in classes]
    slices = {file for path in series for file in files.series[path]}
    for path in sorted([*(path for path in files.files if path not in slices), *series]):
        if path in files.outside or any(file in files.outside for file in files.series.get(path, ())):
            faults.file(f"{path}: expected a file below {files.folder}, found a link that leads out of the folder")
        elif path.parent.name not in classes or path.parent == files.folder:
            faults.add(f"{path}: expected images in the class folders {folders} only, found one in {path.parent.name}/")
        else:
            identifier = _identifier(path, files)
            source = _source(options, path, identifier, faults)
            found.append(Entry(path, identifier, classes[path.parent.name], source, options.fold))
    for path in sorted(files.outside - set(files.files)):
        faults.file(f"{path}: expected a folder, found a link that leads out of {files.folder}")
    if not found:
        faults.add(f"{files.folder}: expected the class folders {folders} with images, found none")
    return found


def _from_table(spec: DatasetSpec, options: TableOptions, files: UserFiles, faults: Faults) -> list[Entry]:
    assert options.image_column is not None
    table = _table_file(options, files.folder)
    one_hot = spec.kind == "multilabel" and options.label_column is None
    ticks = _ticked_columns(spec, options) if one_hot else {}
    cells = [options.label_column, options.group_column, options.fold_column, *ticks]
    columns = [options.image_column, *(column for column in cells if column)]
    found: dict[Path, Entry] = {}
    lines: dict[Path, list[int]] = {}
    labels: dict[Path, set[str | tuple[str, ...]]] = {}
    strange: Counter[str] = Counter()
    left_out: set[Path] = set()
    read = _row_label(spec, options)
    listed = _fold_lists(options, files, faults)
    for line, row in read_rows(table, columns, faults):
        where = f"{table}, line {line}"
        cell = row[options.image_column]
        empty = [column for column in columns if not row[column] and column not in _may_be_empty(spec, options)]
        if empty:
            faults.file(f"{where}: expected text in every column used, found none in {', '.join(map(repr, empty))}")
            continue
        try:
            path = files.find(cell)
        except WithoutPicture:  # counted with all others that are listed
            continue
        except NotFound as error:
            faults.file(f"{where}: expected {shown(cell)} to be a file below {files.folder}, found {error}")
            continue
        try:
            label = read(row)
        except ValueError as error:
            faults.add(f"{where}: {error}")
            continue
        fold = options.fold
        if options.fold_column:
            meaning = fold_of(row[options.fold_column], options.fold_names)
            if meaning is None:
                strange[row[options.fold_column]] += 1
                continue
            if meaning == LEFT_OUT:
                left_out.add(path)
                continue
            fold = cast(Fold, meaning)
        elif options.fold_files:
            fold = listed.get(path)
            if fold is None:
                continue
        lines.setdefault(path, []).append(line)
        labels.setdefault(path, set()).add(label)
        identifier = _identifier(path, files)
        source = row[options.group_column] if options.group_column else _source(options, path, identifier, faults)
        found.setdefault(path, Entry(path, identifier, label, source, fold))
    for path, places in lines.items():
        if len(places) > 1:
            what = f"{len(labels[path])} labels" if len(labels[path]) > 1 else "the same label"
            faults.add(
                f"{table}, lines {', '.join(map(str, places))}: expected one row for {relative(path, files.folder)}, "
                f"found {len(places)} with {what}"
            )
    if strange:
        faults.add(
            f"{table}: expected {options.fold_column!r} to name a fold in every row ({vocabulary()}), got "
            f"{counted(strange)}. Say what these mean with --fold-map VALUE=train,VALUE=test,VALUE=none (in a task's "
            "file: `fold_names`)."
        )
    if not lines and not strange:
        faults.add(f"{table}: expected rows that name images below {files.folder}, found none that can be used")
    _count_unused(table, files, {*found, *left_out})
    return list(found.values())


def _source(options: TableOptions, path: Path, identifier: str, faults: Faults) -> str:
    if options.group_pattern is None:
        return identifier
    match = re.search(options.group_pattern, path.name)
    if match is None:
        faults.file(f"{path}: expected a name in which {options.group_pattern!r} is found, found none")
        return identifier
    return match[1] if match.re.groups else match[0]


def _fold_lists(options: TableOptions, files: UserFiles, faults: Faults) -> dict[Path, Fold]:
    """Which fold each image is in, by the text files that list them."""
    found: dict[Path, Fold] = {}
    for fold, name in options.fold_files.items():
        place = files.folder / name
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            faults.add(f"{place}: expected a list of images in UTF-8, found that it cannot be read ({error})")
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                path = files.find(line.strip())
            except WithoutPicture:
                continue
            except NotFound as error:
                faults.file(f"{place}, line {number}: expected {shown(line.strip())} to be an image, found {error}")
                continue
            if found.setdefault(path, fold) != fold:
                faults.add(f"{place}, line {number}: expected an image in one list, found {shown(line)} in two")
    return found


def _ticked_columns(spec: DatasetSpec, options: TableOptions) -> dict[str, str]:
    """Columns of 0 and 1, to the finding each is for."""
    called = {label: column for column, label in options.names.items()}
    return {called.get(label, label): label for label in spec.labels}


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


def _may_be_empty(spec: DatasetSpec, options: TableOptions) -> tuple[str | None, ...]:
    """A multi-label cell without text is an image without findings."""
    return (options.label_column,) if spec.kind == "multilabel" else ()


def _row_label(spec: DatasetSpec, options: TableOptions) -> Callable[[Mapping[str, str]], str | tuple[str, ...]]:
    """What reads the label of a row; it raises ``ValueError`` with a fault's text."""
    known = {**{label: label for label in spec.labels}, **options.names}
    ticks = _ticked_columns(spec, options)
    column = options.label_column

    def look_up(cell: str) -> str:
        if cell not in known:
            raise ValueError(f"expected {column!r} to be one of {list(known)}, found {shown(cell)}")
        return known[cell]

    def findings(row: Mapping[str, str]) -> tuple[str, ...]:
        assert column is not None
        parts = [part.strip() for part in row[column].split(options.separator)]
        if options.no_finding in parts and len(set(parts)) > 1:
            raise ValueError(f"expected {options.no_finding!r} to stand alone, found {shown(row[column])}")
        present = {look_up(part) for part in parts if part and part != options.no_finding}
        return tuple(label for label in spec.labels if label in present)

    def ticked(row: Mapping[str, str]) -> tuple[str, ...]:
        for name in ticks:
            if row[name] not in _TICKS:
                raise ValueError(f"expected {name!r} to be 0 or 1, found {shown(row[name])}")
        return tuple(label for name, label in ticks.items() if _TICKS[row[name]])

    def single(row: Mapping[str, str]) -> str:
        assert column is not None
        return look_up(row[column])

    if spec.kind != "multilabel":
        return single
    return ticked if column is None else findings


def _identifier(path: Path, files: UserFiles) -> str:
    place = relative(path, files.folder)
    return place if path in files.series else without_ending(place)


def _volume(path: Path, options: TableOptions) -> Volume:
    from medmllm_plugins.data.readers.volumes import read_volume  # SimpleITK is slow to import

    unit = options.unit
    return read_volume(path, unit="HU" if unit == "HU" else "any" if unit else None)


def _joined(listed: Sequence[Entry], found: Sequence[Seen]) -> list[str]:
    contents = [seen.content for seen in found]
    small = [seen.thumbnail for seen in found if seen.thumbnail is not None]
    pairs = similar(contents, np.stack(small) if small and len(small) == len(found) else None)
    return join_groups([entry.source for entry in listed], pairs)


def _folds(listed: Sequence[Entry], groups: Sequence[str]) -> list[Fold]:
    ids, strata = [entry.id for entry in listed], rarest_labels([_labels(entry) for entry in listed])
    stated = {entry.fold for entry in listed}
    if None in stated or not listed:
        return grouped_folds(ids, strata, groups) if listed else []
    folds = {entry.id: entry.fold for entry in listed if entry.fold is not None}
    if "train" in stated and "validation" not in stated:
        rows = [index for index, entry in enumerate(listed) if entry.fold == "train"]
        made = grouped_folds(
            [ids[index] for index in rows],
            [strata[index] for index in rows],
            [groups[index] for index in rows],
            fractions=(0.8, 0.2, 0.0),
        )
        folds |= {ids[index]: fold for index, fold in zip(rows, made, strict=True)}
    return [folds[identifier] for identifier in ids]


def _labels(entry: Entry) -> tuple[str, ...]:
    return (entry.label,) if isinstance(entry.label, str) else entry.label
