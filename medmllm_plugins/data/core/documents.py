"""The unit of evaluation: one labelled image or volume with its group and fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Fold = Literal["train", "validation", "test"]
FOLDS: tuple[Fold, ...] = get_args(Fold)
MASKED: Final = "masked"
"""In place of a fold: documents of the test fold that are shown once more, with the border of their images masked."""


@dataclass(frozen=True, slots=True)
class Document:
    """One image or volume of a data set.

    Attributes:
        id: unique within the data set and stable between machines (never an absolute path).
        image: where the image is, below the data set's folder: a file or folder in POSIX form, a place inside a file
            (``"pathmnist_224.npz#test/17"``), or for generated sets the generator's index; the layout reads it.
        label: one of the data set's class names; of a multi-label set the findings present, in class order.
        group: what must stay on one side of a split (patient, lesion or source figure).
        fold: ``"train"``, ``"validation"`` or ``"test"``; all documents of a group share it, except where a published
            split divides groups (:mod:`medmllm_plugins.data.core.leaks` finds those).
        attributes: further columns of the data that the user named, such as the scanner, and the text of each.
    """

    id: str
    image: str
    label: str | tuple[str, ...]
    group: str
    fold: Fold
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that apply: one, or of a multi-label set any number."""
        return (self.label,) if isinstance(self.label, str) else self.label
