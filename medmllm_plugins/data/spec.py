"""What a data set is, read from its declarative file in ``tasks/datasets``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from medmllm_plugins.errors import DataError

Kind = Literal["multiclass", "ordinal", "multilabel"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A data set's declaration.

    Attributes:
        name: short name, the ``X`` in ``med_cls_X``.
        title: name for people.
        layout: which reader in :mod:`medmllm_plugins.data.layouts` understands the files.
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


def parse_spec(raw: Mapping[str, Any], source: str) -> DatasetSpec:
    """Check a declaration and freeze it.

    Args:
        raw: the YAML file's content.
        source: the file's name, for messages.

    Raises:
        DataError: a key is missing or unknown, there are fewer than two classes, or ``positive`` is no class.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{source}: expected keys and values, found {raw!r}.")
    known = {f.name for f in fields(DatasetSpec)}
    required = {"name", "title", "layout", "modality", "classes"}
    if unknown := sorted(set(raw) - known):
        raise DataError(f"{source}: unknown keys {unknown}; expected some of {sorted(known)}.")
    if missing := sorted(required - set(raw)):
        raise DataError(f"{source}: keys {missing} are missing.")
    name = raw["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"{source}: expected `name` to be lower-case letters, digits and underscores, found {name!r}.")
    kind, dimensions = raw.get("kind", "multiclass"), raw.get("dimensions", 2)
    if kind not in KINDS:
        raise DataError(f"{source}: expected `kind` to be one of {list(KINDS)}, found {kind!r}.")
    if dimensions not in (2, 3):
        raise DataError(f"{source}: expected `dimensions` to be 2 or 3, found {dimensions!r}.")
    classes = _classes(raw["classes"], kind, source)
    positive = raw.get("positive")
    if positive is not None and (positive not in classes or kind == "multilabel"):
        raise DataError(f"{source}: positive class {positive!r} is none of {list(classes)}, or the set is multi-label.")
    for key, wanted in (("overlaps", Mapping), ("options", Mapping), ("notes", list)):
        if key in raw and not isinstance(raw[key], wanted):
            raise DataError(f"{source}: expected `{key}` to be a {wanted.__name__.lower()}, found {raw[key]!r}.")
    return DatasetSpec(**{**raw, "classes": classes, "notes": tuple(raw.get("notes", ()))})


def _classes(classes: object, kind: str, source: str) -> dict[str, tuple[str, ...]]:
    least = 1 if kind == "multilabel" else 2
    if not isinstance(classes, Mapping) or len(classes) < least:
        wanted = f"at least {'one finding' if least == 1 else 'two class names'}"
        raise DataError(f"{source}: expected `classes` to map {wanted} to synonyms, found {classes!r}.")
    for label, synonyms in classes.items():
        if synonyms is not None and (isinstance(synonyms, str) or not isinstance(synonyms, Sequence)):
            raise DataError(f"{source}: expected the synonyms of class {label!r} to be a list, found {synonyms!r}.")
    return {str(label): tuple(str(s) for s in synonyms or ()) for label, synonyms in classes.items()}


def read_spec(path: Path) -> DatasetSpec:
    """Read one declaration from a YAML file; see :func:`parse_spec` for the errors."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: expected YAML in UTF-8, found {' '.join(str(error).split())}.") from error
    return parse_spec({} if content is None else content, path.name)
