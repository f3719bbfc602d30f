"""Which documents are explained: some of each class, hits and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnsweredDocument:
    """A document that was answered.

    Attributes:
        id: of its row.
        label: the right class.
        hit: whether it was answered rightly.
    """

    id: str
    label: str
    hit: bool


def sample_by_class(answered: Sequence[AnsweredDocument], n: int) -> list[str]:
    """Choose documents, n of each class, half of them answered wrongly; where one kind is short, more of the other.

    The choice hangs on ids alone, so that another run of the same data explains the same documents where it can.

    Args:
        answered: all that may be chosen.
        n: how many of each class.

    Returns:
        Ids, class by class in the order of the classes' names, hits before errors.
    """
    chosen: list[str] = []
    for label in sorted({one.label for one in answered}):
        hits, errors = (
            sorted((one.id for one in answered if one.label == label and one.hit == hit), key=_mixed)
            for hit in (True, False)
        )
        wrong = min(len(errors), max(n // 2, n - len(hits)))
        chosen += [*hits[: n - wrong], *errors[:wrong]]
    return chosen


def _mixed(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()
