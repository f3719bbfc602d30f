"""Digest and thumbnail of files, by which a data set is searched for duplicates."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.errors import DataError

THUMBNAIL: Final = 32
"""Side of a thumbnail, in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class FileFacts:
    """Digest and thumbnail of a file.

    Attributes:
        content: a digest, equal for files of any format that show the same image or volume.
        thumbnail: of an image, see :func:`thumbnail`; ``None`` if it is not to be compared.
    """

    content: str
    thumbnail: npt.NDArray[np.float32] | None = None


def scan_files(paths: Sequence[Path], check: Callable[[Path], FileFacts]) -> tuple[dict[Path, FileFacts], list[str]]:
    """Read every file once, in threads; ``check`` raises :class:`DataError` for a file that is damaged.

    Returns:
        The facts of the good files by path, and for each bad file its error, both in the order of ``paths``.
    """

    def attempt(path: Path) -> FileFacts | str:
        try:
            return check(path)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=reader_threads()) as pool:
        results = list(pool.map(attempt, paths))
    facts = {path: result for path, result in zip(paths, results, strict=True) if isinstance(result, FileFacts)}
    return facts, [result for result in results if isinstance(result, str)]


def picture_facts(image: Image.Image) -> FileFacts:
    """Return the SHA-256 of size and pixels of a picture in mode ``RGB``, in hexadecimal, and its thumbnail."""
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    digest.update(image.tobytes())
    return FileFacts(digest.hexdigest(), thumbnail(image))


def thumbnail(image: Image.Image) -> npt.NDArray[np.float32]:
    """Shrink an image.

    Returns:
        ``[32, 32]`` float32 grey levels, 0 to 255, each the mean of its part of the image.
    """
    grey = image.convert("F") if image.mode == "L" else image.convert("L").convert("F")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
