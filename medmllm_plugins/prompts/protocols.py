"""Protocols: how a class is asked for, which answers are scored, and how the reply is read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final, Literal, get_args

from medmllm_plugins.answers.parsing import Answer, parse_answer
from medmllm_plugins.answers.yes_no import parse_finding
from medmllm_plugins.errors import OptionError
from medmllm_plugins.prompts import wording

Protocol = Literal["closed_set", "letter", "open"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)

CYCLIC_UP_TO = 5
"""With at most this many classes, option orders are all cyclic permutations; with more, this many random ones."""
YES_NO = ("yes", "no")

Classes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about an image.

    Attributes:
        text: what the model is asked, without the image.
        classes: class name to synonyms, in class order; of a question about a finding yes and no.
        labels: the answer that means each class, in class order: what is scored.
        options: letter to class name where the question lists letters.
        finding: the finding asked about, in a multi-label set.
    """

    text: str
    classes: Classes
    labels: tuple[str, ...]
    options: Mapping[str, str] | None = None
    finding: str | None = None

    def read(self, answer: str) -> Answer:
        """Read the class out of what the model wrote."""
        if self.finding is not None:
            return parse_finding(answer, self.finding, self.classes[YES_NO[0]])
        return parse_answer(answer, self.classes, options=self.options)


def ask(
    protocol: Protocol, modality: str, classes: Classes, *, order: Sequence[int] | None = None, paraphrase: int = 0
) -> Question:
    """Ask which of the classes applies.

    The class names are listed (``"closed_set"``), get letters (``"letter"``) or are left out (``"open"``). The
    modality reads as in "Classify this …"; ``order`` holds positions of the classes as they are listed.

    Raises:
        OptionError: there are more classes than letters, or no such paraphrase.
    """
    names = tuple(classes)
    listed = names if order is None else tuple(names[position] for position in order)
    if protocol == "open":
        return Question(wording.open_ended(modality, paraphrase), classes, names)
    if protocol == "closed_set":
        return Question(wording.closed_set(modality, listed, paraphrase), classes, names)
    if len(names) > len(ascii_uppercase):
        raise OptionError(
            f"Expected at most {len(ascii_uppercase)} classes for the protocol with letters, got {len(names)}."
        )
    options = dict(zip(ascii_uppercase, listed, strict=False))
    letters = {name: key for key, name in options.items()}
    text = wording.letter(modality, options, paraphrase)
    return Question(text, classes, tuple(letters[name] for name in names), options)


def ask_finding(modality: str, name: str, synonyms: tuple[str, ...], *, paraphrase: int = 0) -> Question:
    """Ask whether one finding is there; the classes are yes and no."""
    yes, no = YES_NO
    return Question(wording.finding(modality, name, paraphrase), {yes: synonyms, no: ()}, YES_NO, finding=name)


def orders(classes: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return the orders in which K options are listed, so that every class is listed at different positions.

    Returns:
        For K up to :data:`CYCLIC_UP_TO` the K cyclic permutations, the original order first: every class is at every
        position once. Above, the original order and four others drawn without repetition.
    """
    original = tuple(range(classes))
    if classes <= CYCLIC_UP_TO:
        return [original[start:] + original[:start] for start in range(classes)]
    generator = random.Random(seed)
    permutations = [original]
    while len(permutations) < CYCLIC_UP_TO:
        permutation = tuple(generator.sample(original, classes))
        if permutation not in permutations:
            permutations.append(permutation)
    return permutations
