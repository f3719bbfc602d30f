"""Choose the documents to explain: some of each class, correct answers and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnsweredDocument:
    """A document's row, its correct class, and whether it was answered correctly."""

    id: str
    label: str
    hit: bool


def sample_by_class(answered: Sequence[AnsweredDocument], n: int) -> list[str]:
    """Choose n documents of each class, half of them errors; where there are too few of one kind, more of the other.

    The choice depends on ids alone, so that another run of the same data explains the same documents where it can.

    Returns:
        Ids, class by class in the order of the classes' names, hits before errors.
    """
    chosen: list[str] = []
    for label in sorted({document.label for document in answered}):
        hits, errors = (
            sorted((document.id for document in answered if (document.label, document.hit) == (label, hit)), key=_hash)
            for hit in (True, False)
        )
        error_count = min(len(errors), max(n // 2, n - len(hits)))
        chosen += [*hits[: n - error_count], *errors[:error_count]]
    return chosen


def _hash(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()
