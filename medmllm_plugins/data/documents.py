"""The unit of evaluation: one labelled image with its group and fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Fold = Literal["train", "validation", "test"]
FOLDS: tuple[Fold, ...] = get_args(Fold)


@dataclass(frozen=True, slots=True)
class Document:
    """One image of a data set.

    Attributes:
        id: unique within the data set and stable between machines (never an absolute path).
        image: where the image is: a path on disk, or for generated sets the generator's index.
        label: one of the data set's class names.
        group: what must stay on one side of a split (patient, lesion or source figure).
        fold: ``"train"``, ``"validation"`` or ``"test"``; all documents of a group share it, except where a published
            split divides groups (its layout logs how many).
    """

    id: str
    image: str
    label: str
    group: str
    fold: Fold
