"""Images for the page: scaled down, encoded as WebP, in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

TALLEST: Final = 16_000
"""Most pixels of a column: WebP allows 16,383, and the slices of a volume are below each other."""


@dataclass(frozen=True, slots=True)
class PageImage:
    """An encoded image: its base64 data, and the size in pixels of it and of one slice."""

    data: str
    width: int
    height: int
    slice_height: int


def encode_image(image: Image.Image, side: int, quality: int, *, slices: int = 1) -> PageImage:
    """Scale an image down to a longest side and encode it.

    Args:
        image: mode ``RGB`` or ``RGBA``; the slices of a volume are of one size, one below the other.
        side: longest side of one slice in pixels; smaller images keep their size.
        quality: of WebP, 0 to 100.
        slices: their number.

    Raises:
        OSError: the image cannot be encoded.
        ValueError: likewise.
    """
    full_height = max(1, image.height // slices)
    side = max(1, min(side, TALLEST // slices))
    scale = min(1.0, side / max(image.width, full_height))
    width, height = max(1, round(image.width * scale)), max(1, round(full_height * scale))
    if scale < 1:
        image = image.resize((width, height * slices), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return PageImage(data, image.width, image.height, max(1, image.height // slices))


def stack_slices(slices: Sequence[Image.Image]) -> Image.Image:
    """Return one image of slices of one size, one below the other, mode ``RGB``."""
    width, height = slices[0].size
    whole = Image.new("RGB", (width, height * len(slices)))
    for index, picture in enumerate(slices):
        whole.paste(picture, (0, index * height))
    return whole
