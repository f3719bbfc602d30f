"""The options of a declaration with the layout ``table``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.fold_names import LEFT_OUT
from medmllm_plugins.data.readers.picture_options import PictureOptions
from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.utils.declared_model import DeclaredModel, Expected, read_declaration

FOLDERS: Final = "folders"
"""Value of the option ``labels``: the name of the folder of an image is its class."""
SEPARATOR: Final = "|"


def _storable_text(text: str) -> str:
    """Refuse what cannot be a column, a file or a pattern; a disk refuses it with errors of many kinds."""
    if "\0" in text:
        raise ValueError
    return text


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _text_keys(value: object) -> object:
    return {str(key): text for key, text in value.items()} if isinstance(value, Mapping) else value


def _text_pairs(value: object) -> object:
    """Return a mapping with its whole numbers as text: YAML reads 0 as a number."""
    if not isinstance(value, Mapping):
        return value
    return {str(cell): str(label) if isinstance(label, int) else label for cell, label in value.items()}


OptionText: TypeAlias = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(_storable_text)]
Alternatives: TypeAlias = Annotated[tuple[OptionText, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class TableOptions(DeclaredModel):
    """The options of a declaration with the layout ``table``."""

    labels: Annotated[Alternatives, Expected("text or a list of it")]
    """A CSV file, absolute or below the set's folder; of several names the first that exists; or ``folders``."""
    image_column: OptionText | None = None
    """The column that names images, see :meth:`medmllm_plugins.data.layouts.user_files.UserFiles.find`."""
    label_column: OptionText | None = None
    """The column of classes. A multi-label table may have a column of 0 and 1 for each class instead."""
    group_column: OptionText | None = None
    """The column of what must stay together (patient, lesion, case)."""
    group_pattern: OptionText | None = None
    """In place of a group column, a regular expression whose match in the file's name, or its first group, is the
    group."""
    attribute_columns: Annotated[tuple[OptionText, ...], BeforeValidator(_as_tuple), Expected("a list of texts")] = ()
    """Further columns, such as the scanner, that `med_probe` compares with the class. Cells may be empty."""
    fold_column: OptionText | None = None
    """The column of folds, in the words of :data:`medmllm_plugins.data.core.fold_names.FOLD_NAMES`."""
    fold_names: Annotated[Mapping[str, OptionText], BeforeValidator(_text_keys), Expected("a mapping to text")] = {}
    """Other values of that column, to the fold they mean, or to ``none`` for rows that are not used."""
    fold_files: Annotated[Mapping[OptionText, OptionText], Expected("a mapping to text")] = {}
    """In place of a fold column, for each fold a text file with the name of an image on each line. Images in none of
    them are not used."""
    fold: OptionText | None = None
    """In place of both, the fold of all images."""
    pattern: Annotated[Alternatives, Expected("text or a list of it")] = ()
    """A glob pattern below the folder; other files are ignored. Of several the first that matches files."""
    separator: OptionText = SEPARATOR
    """What is between the findings of a multi-label cell."""
    no_finding: OptionText | None = None
    """What a multi-label cell says when there is no finding, apart from an empty cell."""
    names: Annotated[Mapping[str, str], BeforeValidator(_text_pairs), Expected("a mapping to text")] = {}
    """What the table says, in cells or as the name of a column of 0 and 1, to the class it means, where the two differ
    (``{"0": normal, "1": pneumonia}``)."""
    unit: OptionText | None = None
    """``HU`` for CT volumes in files that cannot say so (all but DICOM)."""
    frame: OptionText | None = None
    """Which frame of a multi-frame DICOM file is shown."""
    window: OptionText | None = None
    """Through which intensity window DICOM images are shown."""

    @property
    def picture(self) -> PictureOptions:
        """How images are shown."""
        return PictureOptions(self.frame or "middle", self.window)


def table_options(spec: DatasetSpec) -> TableOptions:
    """Check the options of a declaration.

    Raises:
        DataError: one is missing, unknown or of the wrong type, or contradicts another.
    """
    options_set = {key: value for key, value in spec.options.items() if value is not None}
    options = read_declaration(TableOptions, options_set, f"{spec.title}, options", error=DataError)
    for fault in (_column_fault(spec, options), _fold_fault(options), _other_fault(spec, options)):
        if fault:
            raise DataError(f"{spec.title}: {fault}")
    options.picture  # noqa: B018  # raises where a value is wrong
    return options


def _column_fault(spec: DatasetSpec, options: TableOptions) -> str:
    columns = (
        options.image_column,
        options.label_column,
        options.group_column,
        options.fold_column,
        *options.attribute_columns,
    )
    if options.labels == (FOLDERS,):
        if spec.kind == "multilabel":
            return "a folder is one class; expected a table for a multi-label set."
        return f"expected no columns with labels: {FOLDERS}, got some." if any(columns) else ""
    if options.image_column is None:
        return "expected the option `image_column`, got none."
    if options.label_column is None and spec.kind != "multilabel":
        return "expected the option `label_column`, got none."
    named = [column for column in columns if column]
    if len(set(named)) < len(named):
        return f"expected a column of its own for each purpose, got {named}."
    if options.group_column and options.group_pattern:
        return "expected `group_column` or `group_pattern`, got both."
    return ""


def _fold_fault(options: TableOptions) -> str:
    if sum(map(bool, (options.fold_column, options.fold_files, options.fold))) > 1:
        return "expected one of `fold_column`, `fold_files` and `fold`, got several."
    if unknown := {*options.fold_files, *([options.fold] if options.fold else [])} - set(FOLDS):
        return f"expected folds among {list(FOLDS)}, got {shown(sorted(unknown))}."
    if unknown := set(options.fold_names.values()) - {*FOLDS, LEFT_OUT}:
        return f"expected `fold_names` to lead to train, validation, test or {LEFT_OUT}, got {shown(sorted(unknown))}."
    if options.fold_names and not options.fold_column:
        return "expected `fold_column` beside `fold_names`, got none."
    return ""


def _other_fault(spec: DatasetSpec, options: TableOptions) -> str:
    if unknown := sorted(set(options.names.values()) - set(spec.labels)):
        return f"expected `names` to lead to classes, got {shown(unknown)}."
    if options.group_pattern:
        try:
            re.compile(options.group_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return f"expected `group_pattern` to be a regular expression, got {one_line(error)}"
    if options.no_finding and spec.kind != "multilabel":
        return "`no_finding` is for multi-label sets."
    if options.unit not in (None, "HU", "any") or (options.unit and spec.dimensions != 3):
        return 'expected `unit` to be "HU" or "any", in a set of volumes, got something else.'
    if (options.frame or options.window) and spec.dimensions != 2:
        return "`frame` and `window` are options of sets of images, got a set of volumes."
    return ""
