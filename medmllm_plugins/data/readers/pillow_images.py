"""Decode raster image files with Pillow as RGB; a damaged file is an error and never a grey patch."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medmllm_plugins.data.readers.decode_limit import check_decoded_size, max_decoded_bytes
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular, size_of

SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that claim to be an image."""

_PIXEL_BYTES: Mapping[str, int] = MappingProxyType({"JPEG": 8, "JPEG2000": 16, "WEBP": 12})
"""Bytes of memory a pixel takes, by Pillow's name of the format; see :func:`check_pixels`."""
_OTHER_PIXEL_BYTES = 6
_STRIP = 1 << 22
"""Pixels that are converted at once."""
_IN_MEMORY = 16 * 1024**2
"""Files up to this size are read at once, larger ones piece by piece."""
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""EXIF orientations, and the operation that turns the image upright."""
_ORIENTATION = 0x0112

# Raster formats only: an EPS or WMF file under the name of a PNG would otherwise start an interpreter.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDE_MODES = ("I", "F")
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def read_rgb(path: Path) -> Image.Image:
    """Read a BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP file as RGB, 8 bit per channel; see :func:`to_rgb`.

    Of several frames the first is read. A truncated file is an error even if the process has set
    ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``, as lmms-eval does.

    The content decides on the format, not the name. The file is closed.

    Raises:
        DataError: the file is missing, empty, damaged, cut short, no image, no regular file or larger than the
            limit (see :func:`check_pixels`).
    """
    with open_regular(path, "an image file") as opened:
        size = size_of(opened)
        if not size:
            raise DataError(f"{path}: expected an image, got an empty file (0 bytes); get the file again.")
        stream = io.BytesIO(opened.read()) if size <= _IN_MEMORY else opened
        try:
            with _complete_files_only():
                return _decode(path, stream)
        except DataError:
            raise
        # Decoders meet damaged files with errors of many types (OSError, SyntaxError, ValueError, struct.error, ...).
        except Exception as error:
            raise DataError(
                f"{path}: expected a whole image file, got {size} bytes that do not decode "
                f"({_reason(error, stream)}); get the file again."
            ) from error


def check_pixels(path: object, size: tuple[int, int], kind: str = "") -> None:
    """Check the memory for an image before anything is allocated.

    A pixel counts for six bytes, RGB as decoded and as returned, and for more if the decoder keeps copies: eight in
    JPEG, twelve in WebP, sixteen in JPEG 2000 (``kind`` is Pillow's name of the format). The process then takes less
    than twice the limit: under 1 GB by default, for 89 million pixels (67 of JPEG, 44 of WebP, 33 of JPEG 2000).

    Raises:
        DataError: it is above the limit of :mod:`medmllm_plugins.data.readers.decode_limit`.
    """
    check_decoded_size(path, size[0] * size[1] * _PIXEL_BYTES.get(kind, _OTHER_PIXEL_BYTES))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB, 8 bit per channel, upright.

    - The EXIF orientation is applied.
    - Grey (``1``, ``L``) is repeated over the channels, palettes are looked up, CMYK and YCbCr converted.
    - Alpha (``LA``, ``RGBA``, transparent palette or colour) is composited on black, the background of radiographs,
      CT and ultrasound.
    - 16 and 32 bit grey and floats (``I;16``, ``I``, ``F``) are scaled linearly so that the image's own smallest and
      largest value become 0 and 255; a constant image becomes black. (Pillow's own conversion clips at 255, which
      turns 16-bit radiographs white.)

    Raises:
        ValueError: a float image holds NaN or infinity, or the mode has no conversion to RGB.
    """
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    rgb = _converted(image)
    return rgb if turn is None else rgb.transpose(turn)


def _converted(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, some rows at a time, as each step makes an image of four bytes a pixel."""
    if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
        ranges = [(values.min(), values.max()) for values in map(_values, _strips(image))]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        if not np.isfinite([low, high]).all():
            raise ValueError("the float image holds NaN or infinity")
        parts = (Image.fromarray(_scale(_values(strip), float(low), float(high))) for strip in _strips(image))
    elif image.has_transparency_data:
        strips = (strip.convert("RGBA") for strip in _strips(image))
        parts = (Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), strip) for strip in strips)
    else:
        # A new image in any case, so that the caller holds no reference to the file.
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    top = 0
    for part in parts:
        rgb.paste(part.convert("RGB"), (0, top))
        top += part.height
    return rgb


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    width, height = image.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        yield image
        return
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _values(strip: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(strip, dtype=np.float64)


def _decode(path: Path, stream: BinaryIO) -> Image.Image:
    start = stream.read(32)
    # Pillow decodes a PNG whose last chunk is cut off without an error, as it reads no further than the pixels.
    if start.startswith(_PNG_SIGNATURE):
        _check_png_chunks(stream)
    if (canvas := _webp_canvas(start)) is not None:  # the decoder allocates on opening
        check_pixels(path, canvas, "WEBP")
    stream.seek(0)
    with Image.open(stream, formats=_FORMATS) as image:
        check_pixels(path, image.size, image.format or "")
        if isinstance(image, TiffImageFile) and _TILE_WIDTH in image.tag_v2:
            check_pixels(path, (image.tag_v2[_TILE_WIDTH], image.tag_v2.get(_TILE_LENGTH, 1)), "TIFF")
        image.load()
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        rgb = _converted(image)
    del image  # turning the image takes as much memory again
    return rgb if turn is None else rgb.transpose(turn)


def _webp_canvas(start: bytes) -> tuple[int, int] | None:
    """Return width and height by the header of a WebP file; ``None`` for other files."""
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP" or len(start) < 32:
        return None
    if start[12:16] == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF


def _check_png_chunks(stream: BinaryIO) -> None:
    """Walk the chunks up to the end marker (PNG specification, section 5: length, type, data, CRC of type and data)."""
    stream.seek(len(_PNG_SIGNATURE))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        # Pillow skips the checksums of the pixel data; chunks whose type starts in lower case are not needed.
        if kind[:1].isupper():
            total = zlib.crc32(kind)
            while length and (part := stream.read(min(length, 1 << 20))):
                total, length = zlib.crc32(part, total), length - len(part)
            stated = stream.read(4)
            if length or len(stated) < 4:
                break
            if total != int.from_bytes(stated):
                raise ValueError(f"the PNG file is damaged: the checksum of a chunk {kind!r} is wrong")
        else:
            stream.seek(length, io.SEEK_CUR)
            if len(stream.read(4)) < 4:
                break
        if kind == b"IEND":
            return
    raise ValueError("the PNG file is truncated: its end marker IEND is missing")


def _scale(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    span = high - low
    if span == 0:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values - low) * (255.0 / span)).astype(np.uint8)


def _reason(error: Exception, stream: BinaryIO) -> str:
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(_FORMATS)
        stream.seek(0)
        return f"not one of {known}; starts with {stream.read(8)!r}"
    return str(error)[:300] or type(error).__name__


_strict_lock = threading.Lock()
_strict_threads = 0
_flag_outside = False
_pixels_outside: int | None = None


@contextmanager
def _complete_files_only() -> Iterator[None]:
    """Turn ``LOAD_TRUNCATED_IMAGES`` off while a thread of ours decodes, then restore it.

    If the decode limit was raised, Pillow's own limit of pixels is raised too. Both are global to the process, hence
    the count of threads: the first saves them, the last restores them.
    """
    global _strict_threads, _flag_outside, _pixels_outside
    with _strict_lock:
        if _strict_threads == 0:
            _flag_outside = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            _pixels_outside = Image.MAX_IMAGE_PIXELS
            if _pixels_outside is not None:
                Image.MAX_IMAGE_PIXELS = max(_pixels_outside, max_decoded_bytes() // _OTHER_PIXEL_BYTES)
        _strict_threads += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_threads -= 1
            if _strict_threads == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _flag_outside
                Image.MAX_IMAGE_PIXELS = _pixels_outside
