"""The words a model is asked in, one function for each protocol.

Each takes ``paraphrase``: 0 is the wording that results are reported with, the others show how much the wording moves
them. ``PARAPHRASES`` of each protocol are shipped beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from medmllm_plugins.errors import OptionError

PARAPHRASES = 3
"""Wordings of each protocol beside the default one."""

_WORDINGS: Mapping[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def closed_set(modality: str, labels: Sequence[str], paraphrase: int = 0) -> str:
    """Return a closed-set question whose options are class names, in the order given (the default protocol)."""
    return _wording("closed_set", paraphrase).format(modality=modality, options=", ".join(labels))


def letter(modality: str, options: Mapping[str, str], paraphrase: int = 0) -> str:
    """Return a closed-set question whose options have letters: letter to class name, in the order they are listed."""
    listed = "\n".join(f"{key}. {label}" for key, label in options.items())
    return _wording("letter", paraphrase).format(modality=modality, options=listed)


def open_ended(modality: str, paraphrase: int = 0) -> str:
    """Return a question that names no class."""
    return _wording("open", paraphrase).format(modality=modality)


def finding(modality: str, name: str, paraphrase: int = 0) -> str:
    """Return a yes/no question about one finding, such as "Does this chest X-ray show …?"."""
    return _wording("finding", paraphrase).format(modality=modality, finding=name)


def _wording(kind: str, paraphrase: int) -> str:
    if not 0 <= paraphrase <= PARAPHRASES:
        raise OptionError(f"Expected argument `paraphrase` to be from 0 to {PARAPHRASES}, got {paraphrase!r}.")
    return _WORDINGS[kind][paraphrase]
