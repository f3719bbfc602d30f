"""Control images: a blank image, or the image of another group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.errors import DataError

GREY = (128, 128, 128)


def blank(image: Image.Image) -> Image.Image:
    """Return a mid-grey image of the same size."""
    return Image.new("RGB", image.size, GREY)


def partners(documents: Sequence[Document]) -> dict[str, Document]:
    """Give every document the image of another group's document, each image once.

    Documents are put in a fixed random order, group by group, and moved on by the size of the largest group, so that
    none meets its own group.

    Returns:
        The document whose image is shown, by the id of the document that is asked about.

    Raises:
        DataError: one group holds more than half of the documents, so that no such exchange exists.
    """
    largest = max(Counter(document.group for document in documents).values(), default=0)
    if 2 * largest > len(documents):
        raise DataError(
            f"Expected no group to hold more than half of the documents, to exchange images between groups, got one "
            f"with {largest} of {len(documents)}; use the blank image as the control."
        )
    ordered = sorted(documents, key=lambda document: (mixed(document.group), document.group, mixed(document.id)))
    moved = ordered[largest:] + ordered[:largest]
    return {document.id: other for document, other in zip(ordered, moved, strict=True)}


def mixed(text: str) -> str:
    """Return a key by which texts are sorted in a fixed random order."""
    return hashlib.sha256(text.encode()).hexdigest()
