"""What people write in a split column, and the fold that each of these words means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.errors import shown

LEFT_OUT: Final = "none"
"""What a value of a split column may be mapped to beside a fold: its rows are not used."""
_WORDS: Final[Mapping[Fold, tuple[str, ...]]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development", "tune", "tuning"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation"),
}
FOLD_NAMES: Final[Mapping[str, Fold]] = {word: fold for fold, words in _WORDS.items() for word in words}
"""Words that a split column may hold to the fold they mean; case, blanks, hyphens and a final "set" do not count."""


def fold_of(cell: str, names: Mapping[str, str]) -> str | None:
    """Return the fold that a cell of a split column means, :data:`LEFT_OUT`, or ``None`` if it is not understood.

    ``names`` is what the user says of cells; it counts before :data:`FOLD_NAMES`.
    """
    if cell in names:
        return names[cell]
    folded = {key.casefold(): fold for key, fold in names.items()}
    if cell.casefold() in folded:
        return folded[cell.casefold()]
    word = re.sub(r"[\s_-]", "", cell.casefold())
    return FOLD_NAMES.get(word) or FOLD_NAMES.get(word.removesuffix("set"))


def vocabulary() -> str:
    """Return the words that are understood, as a message lists them."""
    return "; ".join(f"{fold}: {', '.join(_WORDS[fold])}" for fold in FOLDS)


def counted(counts: Mapping[str, int], most: int = 5) -> str:
    """List values of a column that are not understood, with the number of rows each has; the most frequent first."""
    ordered = sorted(counts, key=lambda cell: (-counts[cell], cell))
    values = [f"{shown(cell)} in {counts[cell]} row{'' if counts[cell] == 1 else 's'}" for cell in ordered[:most]]
    more = f" and {len(ordered) - most} other values" if len(ordered) > most else ""
    return f"{', '.join(values)}{more}"
