"""Leaks: what stands on both sides of a split, or bears two labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from medmllm_plugins.data.documents import Document, Fold


def divided_groups(documents: Iterable[Document]) -> dict[str, set[Fold]]:
    """Groups with documents in more than one fold, and those folds."""
    places: dict[str, set[Fold]] = defaultdict(set)
    for document in documents:
        places[document.group].add(document.fold)
    return {group: folds for group, folds in places.items() if len(folds) > 1}
