"""The words a model is asked in, one function for each protocol.

Each takes ``paraphrase``: 0 is the wording that results are reported with, the others show how much the wording moves
them. ``PARAPHRASES`` of each protocol are shipped beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medmllm_plugins.errors import OptionError

PARAPHRASES = 3
"""Wordings of each protocol beside the default one."""

_CLOSED_SET = (
    "Classify this {modality} into one of the following categories: {options}. Answer with the category name only.",
    "Which of these categories does this {modality} belong to: {options}? Reply with one category and nothing else.",
    "Look at this {modality}. Choose the one category that fits it best from this list: {options}. "
    "Write only the category.",
    "You are shown a {modality}. Possible categories: {options}. Name the correct category, no explanation.",
)
_LETTER = (
    "Which category does this {modality} belong to?\n{options}\nAnswer with the letter of the option only.",
    "Choose the option that describes this {modality}.\n{options}\nReply with one letter and nothing else.",
    "Look at this {modality} and pick the best option.\n{options}\nWrite only its letter.",
    "You are shown a {modality}. What is the correct option?\n{options}\nGive the letter, no explanation.",
)
_OPEN = (
    "What is the diagnosis in this {modality}? Answer in a few words.",
    "What does this {modality} show? Reply with the main finding in a few words.",
    "Look at this {modality}. Name the most likely diagnosis in a short phrase.",
    "You are shown a {modality}. State the main finding briefly.",
)
_FINDING = (
    "Does this {modality} show {finding}? Answer with yes or no only.",
    "Is {finding} present in this {modality}? Reply with yes or no and nothing else.",
    "Look at this {modality}. Is there {finding}? Write only yes or no.",
    "You are shown a {modality}. Is {finding} visible? Give yes or no, no explanation.",
)


def closed_set(modality: str, labels: Sequence[str], paraphrase: int = 0) -> str:
    """Return a closed-set question whose options are class names, in the order given (the default protocol)."""
    return _wording(_CLOSED_SET, paraphrase).format(modality=modality, options=", ".join(labels))


def letter(modality: str, options: Mapping[str, str], paraphrase: int = 0) -> str:
    """Return a closed-set question whose options have letters: letter to class name, in the order they are listed."""
    listed = "\n".join(f"{key}. {label}" for key, label in options.items())
    return _wording(_LETTER, paraphrase).format(modality=modality, options=listed)


def open_ended(modality: str, paraphrase: int = 0) -> str:
    """Return a question that names no class."""
    return _wording(_OPEN, paraphrase).format(modality=modality)


def finding(modality: str, name: str, paraphrase: int = 0) -> str:
    """Return a yes/no question about one finding, such as "Does this chest X-ray show …?"."""
    return _wording(_FINDING, paraphrase).format(modality=modality, finding=name)


def _wording(wordings: Sequence[str], paraphrase: int) -> str:
    if not 0 <= paraphrase <= PARAPHRASES:
        raise OptionError(f"Expected argument `paraphrase` to be from 0 to {PARAPHRASES}, got {paraphrase!r}.")
    return wordings[paraphrase]
