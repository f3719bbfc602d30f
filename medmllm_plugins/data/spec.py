"""What a data set is, read from its declarative file in ``tasks/datasets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from medmllm_plugins.errors import DataError


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
    classes = raw["classes"]
    if not isinstance(classes, Mapping) or len(classes) < 2:
        raise DataError(f"{source}: expected `classes` to map at least two class names to synonyms, found {classes!r}.")
    for label, synonyms in classes.items():
        if synonyms is not None and (isinstance(synonyms, str) or not isinstance(synonyms, Sequence)):
            raise DataError(f"{source}: expected the synonyms of class {label!r} to be a list, found {synonyms!r}.")
    frozen = {str(label): tuple(str(s) for s in synonyms or ()) for label, synonyms in classes.items()}
    positive = raw.get("positive")
    if positive is not None and positive not in frozen:
        raise DataError(f"{source}: positive class {positive!r} is none of {list(frozen)}.")
    return DatasetSpec(**{**raw, "classes": frozen})


def read_spec(path: Path) -> DatasetSpec:
    """Read one declaration from a YAML file; see :func:`parse_spec` for the errors."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: expected YAML in UTF-8, found {' '.join(str(error).split())}.") from error
    return parse_spec({} if content is None else content, path.name)
