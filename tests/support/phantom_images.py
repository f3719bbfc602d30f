"""Images and labels of the embedded phantoms, without opening the data set, which would draw all of it."""

from __future__ import annotations

from PIL import Image

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.layouts.phantoms import phantom, records


def phantom_images(fold: Fold, count: int | None = None) -> tuple[list[Image.Image], list[str]]:
    """Return the first images of a fold in the set's order, all of them by default, and their labels."""
    indices = [index for index, record in enumerate(records()) if record.fold == fold][:count]
    images = [Image.fromarray(phantom(index).image).convert("RGB") for index in indices]
    return images, [records()[index].label for index in indices]
