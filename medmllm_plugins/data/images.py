"""Image files in, RGB images out; a damaged file is an error and never a grey patch."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from medmllm_plugins.data.duplicates import thumbnail
from medmllm_plugins.data.reader_threads import reader_threads
from medmllm_plugins.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that claim to be an image."""

MAX_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels: 256 MiB of RGB, Pillow's own default for "too large to be true"."""

# Raster formats only: an EPS or WMF file under the name of a PNG would otherwise start an interpreter.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE_MODES = ("I", "F")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFacts:
    """What one pass over an image file tells about it.

    Attributes:
        pixels: SHA-256, in hexadecimal, of width, height and RGB values: equal for files that show the same picture
            whatever their format.
        thumbnail: ``[32, 32]`` float32 grey levels, see :func:`medmllm_plugins.data.duplicates.thumbnail`.
    """

    pixels: str
    thumbnail: npt.NDArray[np.float32]


def read_rgb(path: Path) -> Image.Image:
    """Read a whole image file as RGB, 8 bit per channel; see :func:`to_rgb` for how other modes become RGB.

    Of a file with several frames the first is read. A truncated file is an error even where the process has set
    ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``, as lmms-eval does.

    Args:
        path: BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP; the content decides, not the name.

    Returns:
        The decoded image in mode ``RGB``; the file is closed.

    Raises:
        DataError: the file is missing, empty, damaged, cut short, no image or larger than :data:`MAX_PIXELS`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected an image file, found that it cannot be read ({error.strerror}).") from error
    if not content:
        raise DataError(f"{path}: expected an image, found an empty file (0 bytes); get the file again.")
    try:
        with _complete_files_only():
            return _decode(content)
    # Decoders meet damaged files with errors of many types (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise DataError(
            f"{path}: expected a whole image file, found {len(content)} bytes that do not decode "
            f"({_reason(error, content)}); get the file again."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB, 8 bit per channel, upright.

    - The EXIF orientation is applied.
    - Grey (``1``, ``L``) is repeated over the channels, palettes are looked up, CMYK and YCbCr converted.
    - Alpha (``LA``, ``RGBA``, transparent palette or colour) is composited on black, the background of radiographs,
      CT and ultrasound.
    - 16 and 32 bit grey and floats (``I;16``, ``I``, ``F``) are scaled linearly so that the image's own smallest and
      largest value become 0 and 255, as their files say nothing of the range in use; a constant image becomes black.
      (Pillow's own conversion clips at 255, which turns 16-bit radiographs white.)

    Raises:
        ValueError: a float image holds NaN or infinity, or the mode has no conversion to RGB.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
        return Image.fromarray(_scale(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    # A new image in any case, so that the caller holds no reference to the file.
    return image.convert("RGB")


def check_images(paths: Sequence[Path]) -> list[str]:
    """Decode every file in full and list those that are no good.

    Args:
        paths: image files.

    Returns:
        One fault per bad file, ``"path: what is wrong"``, in the order of ``paths``; empty when all are good.
    """
    return scan_images(paths)[1]


def scan_images(paths: Sequence[Path]) -> tuple[dict[Path, ImageFacts], list[str]]:
    """Decode every file once, in threads.

    Args:
        paths: image files.

    Returns:
        The facts of the good files by path, and the faults of the bad ones, both in the order of ``paths``.
    """
    with ThreadPoolExecutor(max_workers=reader_threads()) as pool:
        results = list(pool.map(_facts, paths))
    facts = {path: result for path, result in zip(paths, results, strict=True) if isinstance(result, ImageFacts)}
    return facts, [result for result in results if isinstance(result, str)]


def _facts(path: Path) -> ImageFacts | str:
    try:
        image = read_rgb(path)
    except DataError as error:
        return str(error)
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    digest.update(image.tobytes())
    return ImageFacts(pixels=digest.hexdigest(), thumbnail=thumbnail(image))


def _decode(content: bytes) -> Image.Image:
    # Pillow decodes a PNG whose last chunk is cut off without a word, as it reads no further than the pixels.
    if content.startswith(_PNG_SIGNATURE):
        _check_png_chunks(content)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels are more than the {MAX_PIXELS} allowed: a decompression bomb?")
        image.load()
        return to_rgb(image)


def _check_png_chunks(content: bytes) -> None:
    """Walk the chunks up to the end marker (PNG specification, section 5: length, type, data, CRC of type and data)."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        # Pillow skips the check sums of the pixel data; chunks whose type starts in lower case are not needed.
        if kind[:1].isupper() and zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            raise ValueError(f"the PNG file is damaged: the check sum of a chunk {kind!r} is wrong")
        if kind == b"IEND":
            return
        position = end
    raise ValueError("the PNG file is truncated: its end marker IEND is missing")


def _scale(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("the float image holds NaN or infinity")
    span = high - low
    if span == 0:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values - low) * (255.0 / span)).astype(np.uint8)


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(_FORMATS)
        return f"not one of {known}; starts with {content[:8]!r}"
    return str(error) or type(error).__name__


_strict_lock = threading.Lock()
_strict_threads = 0
_flag_outside = False


@contextmanager
def _complete_files_only() -> Iterator[None]:
    """Switch ``LOAD_TRUNCATED_IMAGES`` off while any thread of ours decodes, then back to what it was.

    The flag is global to the process and Pillow offers no argument for it, hence the count of threads inside: the
    first one in saves the flag, the last one out restores it.
    """
    global _strict_threads, _flag_outside
    with _strict_lock:
        if _strict_threads == 0:
            _flag_outside = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_threads += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_threads -= 1
            if _strict_threads == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _flag_outside
