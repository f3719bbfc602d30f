"""Control images: a blank one, that of another group, one with white squares on it, or one without its border."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.errors import DataError

GREY = (128, 128, 128)
Mark: TypeAlias = tuple[float, float]
"""Where a white square is drawn: its centre, from the left and from the top, as fractions of the image."""
Box: TypeAlias = tuple[int, int, int, int]
BORDER_SHARE: Final = 1 / 8
"""Width of the border as a share of the image's height and width."""
_SIDE: Final = 0.16
"""Side of a square as a fraction of the image's shorter side."""
_BORDER: Final = 0.03
"""Width of its black border, likewise."""


def blank(image: Image.Image) -> Image.Image:
    """Return a mid-grey image of the same size."""
    return Image.new("RGB", image.size, GREY)


def mark_boxes(size: tuple[int, int], marks: Sequence[Mark]) -> list[tuple[Box, Box]]:
    """Return the pixels of white squares with black borders on an image of (width, height) pixels.

    The black border keeps a white square visible on a white background. Squares are moved to lie inside the image.

    Returns:
        For each mark the box with its border and the box of the white square, (left, top, right, bottom) each; right
        and bottom are not part of the box.
    """
    shorter = min(size)
    side, border = max(2, round(_SIDE * shorter)), max(1, round(_BORDER * shorter))
    outer = min(side + 2 * border, shorter)
    boxes = []
    for mark in marks:
        left, top = (
            min(max(0, round(part * length - outer / 2)), length - outer)
            for part, length in zip(mark, size, strict=True)
        )
        right, bottom = left + outer, top + outer
        boxes.append(((left, top, right, bottom), (left + border, top + border, right - border, bottom - border)))
    return boxes


def draw_marks(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Return a copy of an RGB image with white squares drawn on it."""
    marked = image.copy()
    for outer, inner in mark_boxes(image.size, marks):
        marked.paste((0, 0, 0), outer)
        marked.paste((255, 255, 255), inner)
    return marked


def border_width(side: int) -> int:
    """Return how many pixels of a side of an image, at either end, belong to the border."""
    return max(1, round(BORDER_SHARE * side))


def mask_border(image: Image.Image) -> Image.Image:
    """Return a copy of an image whose border mirrors the part inside it, see :func:`mask_border_of_array`."""
    return Image.fromarray(mask_border_of_array(np.asarray(image), axes=(0, 1)), mode=image.mode)


def mask_border_of_array(values: npt.NDArray[Any], *, axes: tuple[int, int]) -> npt.NDArray[Any]:
    """Return a copy whose border mirrors the part inside it, so that nothing of the border is left.

    A mirrored border continues the tissue beside it and its grey levels. A grey or black frame would be a sharp edge
    that few images have, and the accuracy that it costs would be taken for information in the border. Where nothing
    lies inside the border, the middle row or column is repeated.

    Args:
        values: array of any shape.
        axes: height and width of the images in it.
    """
    for axis in axes:
        side = values.shape[axis]
        border = border_width(side)
        inside = np.arange(border, side - border) if side > 2 * border else np.array([side // 2])
        before = min(border, int(inside[0]))
        positions = np.pad(inside, (before, side - before - len(inside)), mode="reflect")
        values = values.take(positions, axis=axis)
    return values


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
