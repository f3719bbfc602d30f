"""What checks need beside a declaration: a checkpoint, images, a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.plugins.specs import is_identifier

Writer: TypeAlias = Callable[[Path], object]
"""A function that writes files into the empty folder it is given."""
Checkpoint: TypeAlias = str | Path | Writer | Mapping[str, str | Path | Writer]
"""A folder, a size name, a function that writes a checkpoint, or these by the name of the model."""
DataFolder: TypeAlias = str | Path | Writer
"""The folder that holds the folders of data sets, or a function that writes them."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Resources:
    """What the checks of several declarations share; see :func:`~medmllm_plugins.testing.parametrize_with_checks`."""

    checkpoint: Checkpoint | None = None
    data: DataFolder | None = None
    device: str = "auto"

    def checkpoint_of(self, name: str) -> str | Path | Writer | None:
        """Return what the model of that name is loaded from; ``None`` if it is not stated."""
        chosen = self.checkpoint
        if isinstance(chosen, Mapping):
            chosen = chosen.get(name, chosen.get(""))
        return CHOSEN.get(name, CHOSEN.get("")) if chosen is None else chosen


CHOSEN: dict[str, str] = {}
"""Checkpoints by the name of the model (empty: all models) that the option ``--medmllm-checkpoint`` of pytest names."""


def read_checkpoints(stated: Iterable[str], option: str) -> dict[str, str]:
    """Return checkpoints by the name of the model, empty for all models, from texts such as ``my_model=folder``.

    Raises:
        OptionError: a text names no checkpoint, or two name one for the same model.
    """
    checkpoints: dict[str, str] = {}
    for text in stated:
        name, equals, path = text.partition("=")
        if not equals or not is_identifier(name):
            name, path = "", text
        if not path or name in checkpoints:
            raise OptionError(f"Expected {option} [MODEL=]PATH, got {shown(text)}. Name each model once.")
        checkpoints[name] = path
    return checkpoints
