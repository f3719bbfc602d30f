"""Read the pixels of DICOM files frame by frame: stored values, rescaled grey values, and colours.

Uncompressed and RLE pixels are decoded here, other compressions in a child process
(:mod:`medmllm_plugins.data.readers.decoder_process`). Nothing is allocated before the header has been compared with the
file and with the decode limit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.pixels.processing import convert_color_space

from medmllm_plugins.data.readers.decode_limit import check_decoded_size
from medmllm_plugins.data.readers.decoder_process import decode
from medmllm_plugins.data.readers.dicom_codestreams import RLE, check_codestream, decode_rle, jpeg_colours, read_frame
from medmllm_plugins.data.readers.dicom_colour import in_bands, palette_to_rgb
from medmllm_plugins.data.readers.dicom_elements import PIXEL_TAGS, read_at
from medmllm_plugins.data.readers.dicom_header import PALETTE, DicomHeader, PixelLayout
from medmllm_plugins.errors import DataError

_DECODER_FIELDS = ("rows", "columns", "samples", "allocated", "stored", "high", "signed", "planar")


def stored_frame(path: Path, stream: BinaryIO, layout: PixelLayout, index: int) -> npt.NDArray[Any]:
    """Read the stored values of a frame.

    Returns:
        ``[rows, columns]``, or of colour ``[rows, columns, 3]``. Colours that are compressed by JPEG, JPEG-LS or JPEG
        2000 come as red, green and blue, others as they are stored.

    Raises:
        DataError: the pixels are damaged, more than is decoded, or compressed in a way that is not known.
    """
    if layout.allocated == 1 and layout.element.fragments is None:
        return _single_bits(path, stream, layout, index)
    check_decoded_size(path, layout.rows * layout.columns * layout.samples * -(-layout.allocated // 8))
    if layout.element.fragments is None:
        values = np.frombuffer(_native_bytes(path, stream, layout, index), _dtype(layout))
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if layout.photometric == "YBR_FULL_422":
            return _whole_colours(values, layout)
        if layout.planar and layout.samples > 1:
            return _used_bits(values.reshape(layout.samples, layout.rows, layout.columns), layout).transpose(1, 2, 0)
        return _used_bits(values.reshape(_shape(layout)), layout)
    content = read_frame(path, stream, layout, index)
    if layout.syntax == RLE:
        raw = decode_rle(path, layout, content)
        planes = np.frombuffer(raw, _dtype(replace(layout, order="<")))
        planes = _used_bits(planes.reshape(layout.samples, layout.rows, layout.columns), layout)
        return planes.transpose(1, 2, 0) if layout.samples > 1 else planes[0]
    check_codestream(path, layout, content)
    dtype = f"{'i' if layout.signed else 'u'}{layout.allocated // 8}"
    arguments = {
        "transfer_syntax": layout.syntax,
        "photometric": jpeg_colours(layout, content) if layout.samples > 1 else "MONOCHROME2",
        "dtype": dtype,
        **{name: getattr(layout, name) for name in _DECODER_FIELDS},
    }
    function = "medmllm_plugins.data.readers.gdcm_decoder:decode"
    return decode(path, function, content, arguments, dtype=dtype, shape=_shape(layout))


def grey_frame(header: DicomHeader, stream: BinaryIO, index: int) -> npt.NDArray[np.float32]:
    """Read a frame of grey values ``[rows, columns]`` after slope and intercept; MONOCHROME1 is left as it is."""
    stored = stored_frame(header.path, stream, header.layout, index)
    slope, intercept = (numbers[index if len(numbers) > 1 else 0] for numbers in (header.slopes, header.intercepts))
    whole = slope == int(slope) and intercept == int(intercept) and stored.dtype.kind in "iu"
    exact = whole and stored.dtype.itemsize <= 2 and abs(slope) * 2**16 + abs(intercept) <= 2**24
    # Whole numbers up to 2 ** 24 are exact in single precision too, which takes half the time.
    values: npt.NDArray[np.floating] = stored.astype(np.float32 if exact else np.float64)
    if (slope, intercept) != (1.0, 0.0):
        np.multiply(values, slope, out=values)
        np.add(values, intercept, out=values)
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is refused later
        return values.astype(np.float32, copy=False)


def colour_frame(header: DicomHeader, stream: BinaryIO, index: int) -> npt.NDArray[np.uint8]:
    """Read a frame of colours ``[rows, columns, 3]``: red, green and blue of 8 bits, whatever they are stored as.

    Raises:
        DataError: see :func:`stored_frame`; or the palette cannot be used.
    """
    layout = header.layout
    values = stored_frame(header.path, stream, layout, index)
    if layout.photometric == PALETTE:
        return palette_to_rgb(header.path, values, header.palette, layout.order, signed=layout.signed)
    values = _eight_bits(header.path, values, layout)
    decoded = layout.element.fragments is not None and layout.syntax != RLE
    if decoded or layout.photometric == "RGB":
        return values
    if layout.photometric not in ("YBR_FULL", "YBR_FULL_422"):
        raise DataError(
            f"{header.path}: expected colours as RGB, YBR_FULL or YBR_FULL_422 where they are not compressed, got "
            f"{layout.photometric}. Convert the file to RGB."
        )
    return in_bands(lambda band: convert_color_space(band, "YBR_FULL", "RGB"), values, (3,))


def _shape(layout: PixelLayout) -> tuple[int, ...]:
    return (layout.rows, layout.columns, *([layout.samples] if layout.samples > 1 else []))


def _dtype(layout: PixelLayout) -> np.dtype[Any]:
    floats = PIXEL_TAGS[layout.element.tag]
    if floats:
        return np.dtype(floats).newbyteorder("<" if layout.order == "<" else ">")
    return np.dtype(f"{layout.order}{'i' if layout.signed else 'u'}{layout.allocated // 8}")


def _native_bytes(path: Path, stream: BinaryIO, layout: PixelLayout, index: int) -> bytes:
    size = -(-layout.frame_values * layout.allocated // 8)
    start = index * size
    if layout.order == ">" and layout.allocated == 8 and layout.element.vr == "OW":
        # Bytes that are written as words of the other order (PS3.5 8.1.2).
        odd = start % 2
        words = _pixel_bytes(path, stream, layout, start - odd, size + odd + (size + odd) % 2)
        return np.frombuffer(words, "<u2").byteswap().tobytes()[odd : odd + size]
    return _pixel_bytes(path, stream, layout, start, size)


def _pixel_bytes(path: Path, stream: BinaryIO, layout: PixelLayout, start: int, count: int) -> bytes:
    content = read_at(stream, layout.element.offset + start, count)
    if len(content) < count:
        raise DataError(f"{path}: expected {count:,} bytes of a frame, got {len(content):,}: the file has changed.")
    return content


def _single_bits(path: Path, stream: BinaryIO, layout: PixelLayout, index: int) -> npt.NDArray[np.uint8]:
    """Read a frame of single bits, which need not begin at a byte (PS3.5 8.1.1)."""
    values = layout.rows * layout.columns * layout.samples
    first, last = index * values, (index + 1) * values
    content = _pixel_bytes(path, stream, layout, first // 8, -(-last // 8) - first // 8)
    bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    return bits[first % 8 : first % 8 + values].reshape(_shape(layout))


def _used_bits(values: npt.NDArray[Any], layout: PixelLayout) -> npt.NDArray[Any]:
    """Return stored values without the bits around them, where old files keep overlays."""
    if layout.stored == layout.allocated or values.dtype.kind == "f":
        return values
    left, right = layout.allocated - 1 - layout.high, layout.allocated - layout.stored
    return (values << left) >> right


def _whole_colours(values: npt.NDArray[Any], layout: PixelLayout) -> npt.NDArray[Any]:
    """Expand pairs of pixels that share their colour, Y1 Y2 Cb Cr (PS3.3 C.7.6.3.1.2), to one colour a pixel."""
    pairs = values.reshape(-1, 4)
    colours = np.empty((len(pairs), 2, 3), values.dtype)
    colours[:, :, 0] = pairs[:, :2]
    colours[:, :, 1:] = pairs[:, None, 2:]
    return colours.reshape(_shape(layout))


def _eight_bits(path: Path, values: npt.NDArray[Any], layout: PixelLayout) -> npt.NDArray[np.uint8]:
    """Scale colours of more than 8 bits by the bits in use."""
    if values.dtype == np.uint8 and layout.stored == 8:
        return values
    if values.dtype.kind != "u":
        raise DataError(f"{path}: expected colours as whole numbers from 0 on, got {values.dtype}. Convert to 8 bits.")
    scale = 255.0 / (2.0**layout.stored - 1)
    return in_bands(lambda band: np.rint(band * scale).clip(0, 255).astype(np.uint8), values, values.shape[2:])
