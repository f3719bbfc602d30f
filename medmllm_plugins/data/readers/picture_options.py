"""Options for showing DICOM pictures: which frame of a film, and which intensity window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from medmllm_plugins.data.readers.intensity_windows import parse_window
from medmllm_plugins.errors import DataError, shown

FRAMES: Final = ("first", "middle", "all")
"""Names for frames; a number from 1 on is accepted too."""
SHOWN: Final = 9
"""Most frames of a film that ``all`` shows, evenly spaced."""


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """Options for showing DICOM pictures.

    Attributes:
        frame: ``"first"``, ``"middle"``, a number from 1 on as text, or ``"all"``: up to :data:`SHOWN` frames, evenly
            spaced over the film, in one picture.
        window: intensity window by name or as ``"centre/width"``; ``None`` for that of the file.

    Raises:
        DataError: a value is none of these.
    """

    frame: str = "middle"
    window: str | None = None

    def __post_init__(self) -> None:
        number = self.frame.isascii() and self.frame.isdigit() and 0 < len(self.frame) < 10 and int(self.frame) > 0
        if self.frame not in FRAMES and not number:
            raise DataError(
                f"Expected `frame` to be first, middle, all or a number from 1 on, got {shown(self.frame)}."
            )
        if self.window is not None:
            parse_window(self.window)

    def frames(self, path: Path, count: int) -> list[int]:
        """Return the indices of the frames to show of a file with ``count`` of them.

        Raises:
            DataError: there is no frame of that number.
        """
        if self.frame == "first":
            return [0]
        if self.frame == "middle":
            return [count // 2]
        if self.frame == "all":
            parts = min(count, SHOWN)
            return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]
        if int(self.frame) > count:
            raise DataError(
                f"{path}: expected at least {self.frame} frames, got {count}. Choose with frame=first, middle, all or "
                "a smaller number."
            )
        return [int(self.frame) - 1]


DEFAULT: Final = PictureOptions()


def montage(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Put pictures into one, row by row from the top left, without gaps.

    ``columns`` is ``None`` for a nearly square grid, with no more rows than columns. Smaller pictures are at the top
    left of their cell on black.

    Returns:
        One image in mode ``RGB``; unused cells are black.

    Raises:
        DataError: there is no picture, or ``columns`` is below 1.
    """
    if not images:
        raise DataError("Expected at least one picture for a montage, got none.")
    if columns is not None and columns < 1:
        raise DataError(f"Expected a montage of at least 1 column, got {columns}.")
    across = math.ceil(math.sqrt(len(images))) if columns is None else columns
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images), strict=True))
    canvas = Image.new("RGB", (across * width, math.ceil(len(images) / across) * height))
    for index, image in enumerate(images):
        canvas.paste(image.convert("RGB"), (index % across * width, index // across * height))
    return canvas
