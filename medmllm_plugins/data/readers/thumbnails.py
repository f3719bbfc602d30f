"""Shrink images for the search for near-duplicates."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL: Final = 32
"""Side of a thumbnail, in pixels."""


def thumbnail(image: Image.Image) -> npt.NDArray[np.float32]:
    """Shrink an image.

    Returns:
        ``[32, 32]`` float32 grey levels, 0 to 255, each the mean of its part of the image.
    """
    grey = image.convert("F") if image.mode == "L" else image.convert("L").convert("F")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
