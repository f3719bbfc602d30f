"""What a data set is, read from its declarative file in ``tasks/datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.bounded_yaml import read_yaml_file
from medmllm_plugins.utils.declared_model import DeclarationFault, DeclaredModel, Expected, few, read_declaration
from medmllm_plugins.utils.json_values import clean

Kind: TypeAlias = Literal["multiclass", "ordinal", "multilabel"]
Classes: TypeAlias = Mapping[str, tuple[str, ...]]


def _one_line(text: str) -> str:
    if not text.strip() or len(text.splitlines()) != 1:
        raise ValueError
    return text


def _storable_path(text: str) -> str:
    """Refuse a path that no disk can hold: asking for one raises errors of many kinds."""
    parts = text.split("/")
    too_long = len(text) > 1000 or any(len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if too_long or "\0" in text or (text.startswith("~") and parts[0] != "~"):
        raise ValueError
    return text


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _read_classes(raw: object) -> dict[str, tuple[str, ...]]:
    """Return class names to their synonyms as text; YAML may hold whole numbers, and nothing in place of synonyms."""
    if not isinstance(raw, Mapping):
        raise DeclarationFault(f"expected `classes` to map at least two class names to synonyms, got {shown(raw)}.")
    classes: dict[str, tuple[str, ...]] = {}
    for label, synonyms in raw.items():
        if not _is_class_name(label):
            raise DeclarationFault(
                f"expected the names in `classes` to be text, got {shown(label)}. Put quotes around it (YAML reads "
                "yes, no, on and off as true and false)."
            )
        if str(label) in classes:
            raise DeclarationFault(f"expected names in `classes` that differ, got {shown(str(label))} twice.")
        where = f"expected the synonyms of class {shown(label)} in `classes` to be"
        if synonyms is not None and not isinstance(synonyms, list | tuple):
            raise DeclarationFault(f"{where} a list, got {shown(synonyms)}.")
        if wrong := [word for word in synonyms or () if not _is_class_name(word)]:
            raise DeclarationFault(f"{where} text, got {shown(wrong[0])}. Put quotes around it.")
        classes[str(label)] = tuple(str(word) for word in synonyms or ())
    return classes


def _read_findings(raw: object) -> dict[str, tuple[str, ...]]:
    """Return the wordings of each class as tuples of text."""
    if not isinstance(raw, Mapping):
        raise DeclarationFault(f"expected `findings` to map each class name to wordings, got {shown(raw)}.")
    findings: dict[str, tuple[str, ...]] = {}
    for label, wordings in raw.items():
        listed = list(wordings) if isinstance(wordings, list | tuple) else []
        if len(listed) < 2 or not all(isinstance(text, str) and _is_class_name(text) for text in listed):
            raise DeclarationFault(
                f"expected the `findings` of {shown(label)} to be at least two lines of text of at most 200 "
                f"characters each, got {shown(wordings)}."
            )
        findings[str(label)] = tuple(listed)
    texts = [" ".join(text.casefold().split()) for wordings in findings.values() for text in wordings]
    if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
        raise DeclarationFault(f"expected wordings in `findings` that differ, got {shown(repeated[0])} twice.")
    return findings


def _is_class_name(value: object) -> bool:
    """Return whether a class or synonym may be called this: printable text, or a whole number, as grades are."""
    if isinstance(value, str):
        return bool(value.strip()) and clean(value) == value and len(value.splitlines()) == 1 and len(value) <= 200
    return type(value) is int and abs(value) < 10**9


Line: TypeAlias = Annotated[str, AfterValidator(_one_line), Expected("one line of text")]
NO_FINDING: Final = "no finding"
"""Key in ``findings`` of a multi-label set: wordings of an image on which none of the findings is seen."""
_WORDINGS = {"type": "array", "items": {"type": "string", "maxLength": 200}, "minItems": 2}
_SYNONYMS = {"anyOf": [{"type": "array", "items": {"type": ["string", "integer"]}}, {"type": "null"}]}


class DatasetSpec(DeclaredModel):
    """The declaration of a data set."""

    name: Annotated[
        str,
        Field(max_length=100, pattern="^[a-z0-9][a-z0-9_]*$"),
        Expected("lower-case letters, digits and underscores, 100 at most"),
    ]
    """Short name, the ``X`` in ``med_cls_X``."""
    title: Line
    """Name for people."""
    layout: Line
    """How the files are laid out: a layout of this package, or ``package.module:Class`` of a plugin."""
    modality: Line
    """What the image is, as in the question ("breast ultrasound image")."""
    classes: Annotated[
        Classes,
        BeforeValidator(_read_classes),
        WithJsonSchema({"type": "object", "additionalProperties": _SYNONYMS, "minProperties": 1}),
    ]
    """Class names to other words for them, in the order of the question."""
    folder: Annotated[
        str,
        AfterValidator(_storable_path),
        Expected("a path of at most 1,000 characters, each part at most 255, that names no other user's home"),
    ] = ""
    """Folder below ``MEDMLLM_DATA``; empty for generated sets."""
    positive: Annotated[str | None, Expected("text, the name of a class")] = None
    """The class whose sensitivity and specificity are reported; ``None`` to report them for every class."""
    licence: str = ""
    """Licence of the data, as their authors state it."""
    citation: str = ""
    """Reference for the data."""
    download: str = ""
    """Where people get the set; shown when it is not found."""
    kind: Kind = "multiclass"
    """``ordinal`` if the classes are grades in their order; ``multilabel`` if an image may have any number of them."""
    dimensions: Annotated[int, Field(ge=2, le=3), Expected("2 or 3")] = 2
    """2 for images, 3 for volumes."""
    overlaps: Annotated[Mapping[str, str], Expected("a mapping of names of data sets to text")] = {}
    """Other data sets with some of the same images, to the reason."""
    notes: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Expected("a list of texts")] = ()
    """What a reader of the numbers has to know."""
    findings: Annotated[
        Mapping[str, tuple[str, ...]],
        BeforeValidator(_read_findings),
        WithJsonSchema({"type": "object", "additionalProperties": _WORDINGS}),
    ] = {}
    """What is seen on an image of each class, in words that name no class: shown in place of the image to find out
    whether the model knows what the words mean. At least two wordings for every class; a multi-label set has further
    ones under ``no finding``, of an image without any."""
    options: Annotated[Mapping[str, Any], Expected("a mapping with text as keys")] = {}
    """Further arguments of the layout."""

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        least = 1 if self.kind == "multilabel" else 2
        if len(self.classes) < least:
            words = "one finding" if least == 1 else "two class names"
            raise DeclarationFault(
                f"expected `classes` to map at least {words} to synonyms, got {shown(dict(self.classes))}."
            )
        if self.positive is not None and self.kind == "multilabel":
            raise DeclarationFault("`positive` does not apply to a multi-label set; remove it.")
        if self.positive is not None and self.positive not in self.classes:
            raise DeclarationFault(
                f"expected `positive` to be one of the classes, {few(map(shown, self.classes))}, got "
                f"{shown(self.positive)}."
            )
        described = {*self.classes, NO_FINDING} if self.kind == "multilabel" else set(self.classes)
        if self.findings and set(self.findings) != described:
            raise DeclarationFault(
                f"expected `findings` for each of {few(map(shown, sorted(described)))}, got "
                f"{few(map(shown, sorted(self.findings)))}."
            )
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in prompt order."""
        return tuple(self.classes)


def parse_spec(raw: object, source: str) -> DatasetSpec:
    """Check a declaration, the content of the YAML file ``source``.

    Raises:
        DataError: a key is missing or unknown, a value is of the wrong type, there are fewer than two classes, or
            ``positive`` is no class.
    """
    return read_declaration(DatasetSpec, raw, source, error=DataError)


def read_spec(path: Path) -> DatasetSpec:
    """Read one declaration from a YAML file; see :func:`parse_spec` for the errors, which begin with its path."""
    content = read_yaml_file(path, error=DataError).content
    return parse_spec({} if content is None else content, str(path))
