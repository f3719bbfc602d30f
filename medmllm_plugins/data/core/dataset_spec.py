"""What a data set is, read from its declarative file in ``tasks/datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.bounded_yaml import read_yaml_file
from medmllm_plugins.utils.identifiers import is_identifier

Kind = Literal["multiclass", "ordinal", "multilabel"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A data set's declaration.

    Attributes:
        name: short name, the ``X`` in ``med_cls_X``.
        title: name for people.
        layout: which reader in :mod:`medmllm_plugins.data.layouts.layout_registry` understands the files.
        modality: what the image is, as it stands in the prompt ("breast ultrasound image").
        classes: class name to the other words that mean it, in the order the prompt lists them.
        folder: folder below ``MEDMLLM_DATA``; empty for generated sets.
        positive: the class whose sensitivity and specificity is *the* sensitivity and specificity;
            ``None`` where no class is.
        licence: licence of the data, as their authors state it.
        citation: reference for the data.
        download: where people get the set; shown when it is not found.
        kind: ``"multiclass"``; ``"ordinal"``, where the order of the classes is that of the grades; or
            ``"multilabel"``, where any number of the classes, the findings, may apply to an image.
        dimensions: 2 for images, 3 for volumes.
        overlaps: other data sets that hold some of the same images, to how that came about.
        notes: what a reader of the numbers has to know.
        options: further arguments of the layout.
    """

    name: str
    title: str
    layout: str
    modality: str
    classes: Mapping[str, tuple[str, ...]]
    folder: str = ""
    positive: str | None = None
    licence: str = ""
    citation: str = ""
    download: str = ""
    kind: Kind = "multiclass"
    dimensions: int = 2
    overlaps: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in prompt order."""
        return tuple(self.classes)


_REQUIRED: Final = ("name", "title", "layout", "modality", "classes")


def parse_spec(raw: Mapping[str, Any], source: str) -> DatasetSpec:
    """Check a declaration and freeze it.

    Args:
        raw: the YAML file's content.
        source: the file's name, for messages.

    Raises:
        DataError: a key is missing or unknown, a value is of the wrong type, there are fewer than two classes, or
            ``positive`` is no class.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{source}: expected keys and values, got {shown(raw)}.")
    known = sorted(field.name for field in fields(DatasetSpec))
    if unknown := sorted(shown(key) for key in raw if key not in known):
        raise DataError(f"{source}: unknown keys {_few(unknown)}; expected some of {known}.")
    if missing := sorted(set(_REQUIRED) - set(raw)):
        raise DataError(f"{source}: keys {missing} are missing.")
    for key, (wanted, is_good) in _TYPES.items():
        if key in raw and not is_good(raw[key]):
            raise DataError(f"{source}: expected `{key}` to be {wanted}, got {shown(raw[key])}.")
    kind: Kind = raw.get("kind", "multiclass")
    classes = _classes(raw["classes"], kind, source)
    positive = raw.get("positive")
    if positive is not None and kind == "multilabel":
        raise DataError(f"{source}: `positive` does not apply to a multi-label set; remove it.")
    if positive is not None and positive not in classes:
        raise DataError(
            f"{source}: expected `positive` to be one of the classes, {_few(map(shown, classes))}, got "
            f"{shown(positive)}."
        )
    return DatasetSpec(**{**raw, "classes": classes, "notes": tuple(raw.get("notes", ()))})


def _is_line(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value.splitlines()) == 1


def _is_path(text: str) -> bool:
    """Whether a disk can hold a path: asking for one that it cannot raises errors of many kinds."""
    parts = text.split("/")
    short = len(text) <= 1000 and all(len(part.encode("utf-8", "replace")) <= 255 for part in parts)
    return short and "\0" not in text and (not text.startswith("~") or parts[0] == "~")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_text_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, str) for pair in value.items() for item in pair)


_TYPES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "name": (
        "lower-case letters, digits and underscores, 100 at most",
        is_identifier,
    ),
    "title": ("one line of text", _is_line),
    "layout": ("one line of text", _is_line),
    "modality": ("one line of text", _is_line),
    "folder": (
        "a path of at most 1,000 characters, each part at most 255, that names no other user's home",
        lambda value: isinstance(value, str) and _is_path(value),
    ),
    "positive": ("text, the name of a class", lambda value: value is None or isinstance(value, str)),
    "licence": ("text", _is_text),
    "citation": ("text", _is_text),
    "download": ("text", _is_text),
    "kind": (f"one of {list(KINDS)}", lambda value: isinstance(value, str) and value in KINDS),
    "dimensions": ("2 or 3", lambda value: type(value) is int and value in (2, 3)),
    "overlaps": ("a mapping of names of data sets to text", _is_text_map),
    "notes": ("a list of texts", _is_texts),
    "options": (
        "a mapping with text as keys",
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
    ),
}
"""For each key what it has to be, in words, and whether a value is that; ``classes`` is checked on its own."""


def _classes(classes: object, kind: str, source: str) -> dict[str, tuple[str, ...]]:
    least = 1 if kind == "multilabel" else 2
    if not isinstance(classes, Mapping) or len(classes) < least:
        wanted = f"at least {'one finding' if least == 1 else 'two class names'}"
        raise DataError(f"{source}: expected `classes` to map {wanted} to synonyms, got {shown(classes)}.")
    checked: dict[str, tuple[str, ...]] = {}
    for label, synonyms in classes.items():
        if not _is_name(label):
            raise DataError(
                f"{source}: expected the names in `classes` to be text, got {shown(label)}. Put quotes around it "
                "(YAML reads yes, no, on and off as true and false)."
            )
        if str(label) in checked:
            raise DataError(f"{source}: expected names in `classes` that differ, got {shown(str(label))} twice.")
        if synonyms is not None and not isinstance(synonyms, list | tuple):
            raise DataError(
                f"{source}: expected the synonyms of class {shown(label)} in `classes` to be a list, got "
                f"{shown(synonyms)}."
            )
        if wrong := [word for word in synonyms or () if not _is_name(word)]:
            raise DataError(
                f"{source}: expected the synonyms of class {shown(label)} in `classes` to be text, got "
                f"{shown(wrong[0])}. Put quotes around it."
            )
        checked[str(label)] = tuple(str(word) for word in synonyms or ())
    return checked


def _is_name(value: object) -> bool:
    """Whether a class or a synonym can be called this: a line of text, or a whole number, which grades have."""
    return (_is_line(value) and len(str(value)) <= 200) or (type(value) is int and abs(value) < 10**9)


def _few(items: Iterable[str], most: int = 10) -> str:
    """The first of some items, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"


def read_spec(path: Path) -> DatasetSpec:
    """Read one declaration from a YAML file; see :func:`parse_spec` for the errors, which begin with its path."""
    content = read_yaml_file(path, error=DataError).content
    return parse_spec({} if content is None else content, str(path))
