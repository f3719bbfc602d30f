"""Images with a corner tag that gives the class away: shortcuts that the analysis must warn of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS, Document, Fold
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import DataError

TAG_SHARE: Final = 1 / 8
"""Side of the tag as a share of the image's shorter side: 8 pixels of a phantom."""


def tagged(data: Dataset, folds: Collection[Fold] = FOLDS, *, agreement: float = 1.0, seed: int = 0) -> Dataset:
    """Return the same data set with a square in the upper left corner whose grey level tells a class.

    The K classes have evenly spaced levels from black to white. Documents, labels, groups and folds stay the same.

    Args:
        data: a data set of images, one class each.
        folds: the folds whose images get a tag; the others stay as they are.
        agreement: share of the images whose tag is that of their class; the others get that of another class, drawn at
            random for each image.
        seed: chooses these images.
    """
    marks = "+".join(fold for fold in FOLDS if fold in folds)
    fingerprint = hashlib.sha256(repr((data.fingerprint, marks, agreement, seed)).encode()).hexdigest()
    return replace(data, fingerprint=fingerprint, reader=_TaggedLayout(data.reader, frozenset(folds), agreement, seed))


@dataclass(frozen=True)
class _TaggedLayout(Layout):
    """A layout whose images get a tag."""

    base: Layout
    folds: frozenset[Fold]
    agreement: float
    seed: int

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """List the documents of the layout below."""
        return self.base.documents(spec, folder, faults)

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image:
        """Read the document's image and draw the tag.

        Raises:
            DataError: the image cannot be read, or the document has a volume.
        """
        image = self.base.image(spec, folder, document)
        if not isinstance(image, Image.Image):
            raise DataError(f"{document.id}: expected an image to draw a tag on, got a volume.")
        if document.fold not in self.folds:
            return image
        level = round(255 * self._tag_class(spec, document) / (len(spec.labels) - 1))
        side = max(1, round(TAG_SHARE * min(image.size)))
        image = image.copy()
        image.paste((level,) * 3, (0, 0, side, side))
        return image

    def mask(self, spec: DatasetSpec, folder: Path, document: Document) -> npt.NDArray[np.bool_] | None:
        """Return where the finding is."""
        return self.base.mask(spec, folder, document)

    def _tag_class(self, spec: DatasetSpec, document: Document) -> int:
        """Return the number of the class that the tag tells."""
        number = spec.labels.index(document.labels[0])
        digest = hashlib.sha256(f"{self.seed}\0{document.id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if generator.random() < self.agreement:
            return number
        return int((number + generator.integers(1, len(spec.labels))) % len(spec.labels))
