"""Choose the documents to explain: some of each class, correct answers and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample_by_class(answered: Sequence[tuple[str, str, bool]], n: int) -> list[str]:
    """Choose n documents of each class, half of them errors; where there are too few of one kind, more of the other.

    ``answered`` has each document's id, its correct class, and whether it was answered correctly.
    The choice depends on ids alone, so that another run of the same data explains the same documents where it can.

    Returns:
        Ids, class by class in the order of the classes' names, hits before errors.
    """
    chosen: list[str] = []
    for label in sorted({label for _, label, _ in answered}):
        hits, errors = (
            sorted((document for document, *kind in answered if kind == [label, hit]), key=_hash)
            for hit in (True, False)
        )
        error_count = min(len(errors), max(n // 2, n - len(hits)))
        chosen += [*hits[: n - error_count], *errors[:error_count]]
    return chosen


def _hash(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()
