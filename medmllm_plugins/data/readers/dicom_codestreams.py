"""Check compressed frames of DICOM files, their fragments and their own headers, before a decoder gets them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from medmllm_plugins.data.readers.decode_limit import check_decoded_size
from medmllm_plugins.data.readers.dicom_elements import read_at
from medmllm_plugins.data.readers.dicom_header import PixelLayout
from medmllm_plugins.errors import DataError

RLE: Final = "1.2.840.10008.1.2.5"
JPEG: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81))
"""JPEG baseline, extended and lossless, and JPEG-LS."""
JPEG_LOSSY: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51))
JPEG_2000: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91))
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
# Of JPEG's frame markers C4, C8 and CC are others; F7 is JPEG-LS.
_FRAME_MARKERS: Final = frozenset(
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
)
# A block of 64 values takes at least 2 bits of baseline JPEG, and colours may be stored at half size; a value at least
# one bit of lossless JPEG.
_MOST_PER_BYTE: Final = {
    "1.2.840.10008.1.2.4.50": 512,
    "1.2.840.10008.1.2.4.51": 512,
    "1.2.840.10008.1.2.4.57": 8,
    "1.2.840.10008.1.2.4.70": 8,
}
_MAX_TILES: Final = 65_535
_Size: TypeAlias = tuple[int, int, int, int]
"""Rows, columns, values a pixel, and bits of a value, by the header of a compressed frame."""


def read_frame(path: Path, stream: BinaryIO, layout: PixelLayout, index: int) -> bytes:
    """Return the bytes of a compressed frame, its fragments joined.

    Raises:
        DataError: there are fewer or more frames than the header states, or the frame is above the decode limit.
    """
    fragments = frame_fragments(path, stream, layout)[index]
    check_decoded_size(path, sum(length for _, length in fragments))
    return b"".join(read_at(stream, offset, length) for offset, length in fragments)


def frame_fragments(path: Path, stream: BinaryIO, layout: PixelLayout) -> list[list[tuple[int, int]]]:
    """Return offset and length of the fragments of each frame.

    The offset tables decide where they fit the fragments; else each fragment is a frame if there are as many, and
    otherwise a frame begins wherever a codestream does.

    Raises:
        DataError: there are fewer or more frames than the header states.
    """
    table, *fragments = layout.element.fragments or ((0, 0),)
    frames = layout.frames
    if frames == 1 and fragments:
        return [fragments]
    for starts in (_offsets(layout.offsets, "<Q"), _offsets(read_at(stream, *table), f"{layout.order}I")):
        groups = _split_at(fragments, starts)
        if len(groups) == frames:
            return groups
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    begins = [
        index
        for index, (offset, _) in enumerate(fragments)
        if read_at(stream, offset, 8).startswith(_STARTS) or index == 0
    ]
    groups = [fragments[start:end] for start, end in zip(begins, [*begins[1:], len(fragments)], strict=True)]
    if len(groups) != frames:
        raise DataError(
            f"{path}: expected {frames} compressed frames by the header, got {len(groups)} in {len(fragments)} "
            "fragments. The file is damaged or cut short: export it again."
        )
    return groups


def _offsets(table: bytes, form: str) -> list[int]:
    size = struct.calcsize(form)
    return [value for (value,) in struct.iter_unpack(form, table[: len(table) // size * size])]


def _split_at(fragments: list[tuple[int, int]], starts: list[int]) -> list[list[tuple[int, int]]]:
    """Group fragments by frame, if the offsets are those of fragments, ascending from 0; else return nothing."""
    if not fragments or not starts:
        return []
    origin = fragments[0][0]
    index_of = {offset - origin: index for index, (offset, _) in enumerate(fragments)}
    begins = [index_of.get(start, -1) for start in starts]
    if begins[0] != 0 or any(first >= second for first, second in pairwise(begins)):
        return []
    return [fragments[start:end] for start, end in zip(begins, [*begins[1:], len(fragments)], strict=True)]


def check_codestream(path: Path, layout: PixelLayout, content: bytes) -> None:
    """Compare the header of a compressed frame with the DICOM header.

    Raises:
        DataError: it is of another compression, size, number of values or more bits; or its compression cannot be read.
    """
    if layout.syntax in JPEG:
        stream = _jpeg(content)
    elif layout.syntax in JPEG_2000:
        stream = _jpeg_2000(content)
    else:
        raise DataError(
            f"{path}: expected pixels that are not compressed, or by RLE, JPEG, JPEG-LS or JPEG 2000, got another "
            "compression (such as video or High-Throughput JPEG 2000). Decompress the file with another program."
        )
    if stream is None:
        raise DataError(
            f"{path}: expected compressed pixels as the header states, got others or damaged ones. Get the file again."
        )
    rows, columns, samples, bits = stream
    values = rows * columns * samples
    if values > _MOST_PER_BYTE.get(layout.syntax, values) * len(content):
        raise DataError(
            f"{path}: expected {rows} x {columns} compressed pixels by the header, got {len(content):,} "
            "bytes, too few for them. The file is damaged or cut short: get it again."
        )
    if stream[:3] != (layout.rows, layout.columns, layout.samples) or not 1 <= bits <= layout.allocated:
        raise DataError(
            f"{path}: expected {layout.rows} x {layout.columns} pixels of {layout.samples} x {layout.allocated} bits "
            f"by the header, got compressed ones of {rows} x {columns} of {samples} x "
            f"{bits} bits. The file is damaged, or its header was changed: export it again."
        )


def _jpeg_markers(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the offset of the value and the length of the segments before the pixels."""
    offset = 2
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker in (0xFF, 0x01):  # a fill byte; a marker without a length
            offset += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[offset + 2 : offset + 4])
        yield marker, offset + 4, length
        if marker in (0xD8, 0xD9, 0xDA) or length < 2:
            return
        offset += 2 + length


def _jpeg(content: bytes) -> _Size | None:
    """Return the frame header of a JPEG or JPEG-LS stream (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if content[:2] != b"\xff\xd8":
        return None
    for marker, value, length in _jpeg_markers(content):
        if marker in _FRAME_MARKERS:
            if length < 8 or value + 6 > len(content):
                return None
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content, value)
            return rows, columns, samples, bits
    return None


def jpeg_colours(layout: PixelLayout, content: bytes) -> str:
    """Return the photometric interpretation of a lossy colour JPEG.

    A JFIF marker, Adobe's marker or components called R, G and B say so, as for any JPEG decoder; many ultrasound
    devices call frames RGB in the header that are stored as luminance and chrominance. Without these the header counts.
    """
    if layout.samples != 3 or layout.syntax not in JPEG_LOSSY:
        return layout.photometric
    adobe = ""
    for marker, value, length in _jpeg_markers(content):
        if marker == 0xE0 and content[value : value + 5] == b"JFIF\0":
            return "YBR_FULL_422"
        if marker == 0xEE and content[value : value + 5] == b"Adobe" and 14 <= length < len(content) - value:
            adobe = "YBR_FULL_422" if content[value + 11] else "RGB"
        if marker in _FRAME_MARKERS:
            names = content[value + 6 : value + 15 : 3]
            return adobe or ("RGB" if names in (b"RGB", b"rgb") else layout.photometric)
    return layout.photometric


def _jpeg_2000(content: bytes) -> _Size | None:
    """Return the size marker of a JPEG 2000 codestream (ITU-T T.800 A.5.1), within a JP2 file or without one."""
    start = 0
    if content.startswith(_STARTS[2]):
        while True:
            if start + 8 > len(content):
                return None
            length, kind = struct.unpack_from(">I4s", content, start)
            if kind == b"jp2c":
                start += 16 if length == 1 else 8
                break
            if length < 8:
                return None
            start += length
    if content[start : start + 4] != b"\xff\x4f\xff\x51" or len(content) < start + 44:
        return None
    x, y, x_start, y_start, tile_x, tile_y, tile_x0, tile_y0, samples = struct.unpack_from(">8IH", content, start + 8)
    parts = content[start + 42 : start + 42 + 3 * samples]
    if not (x > x_start and y > y_start and tile_x and tile_y and 1 <= samples == len(parts) // 3):
        return None
    tiles = -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y)
    if len(set(parts[::3])) != 1 or parts[1::3].strip(b"\1") or parts[2::3].strip(b"\1") or tiles > _MAX_TILES:
        return None
    return y - y_start, x - x_start, samples, (parts[0] & 0x7F) + 1


def decode_rle(path: Path, layout: PixelLayout, content: bytes) -> bytes:
    """Decode an RLE frame (PS3.5 annex G).

    Returns:
        Values in little-endian order, plane by plane: ``[samples, rows, columns]``.

    Raises:
        DataError: the segments do not hold what the header states.
    """
    pixels, width = layout.rows * layout.columns, layout.allocated // 8
    count = layout.samples * width
    # A pair of bytes makes at most 128: what cannot be there is not allocated for.
    if layout.allocated % 8 or len(content) < 64 or pixels * count > 64 * len(content):
        raise _bad_rle(path, layout, "fewer bytes")
    number, *offsets = struct.unpack_from("<16I", content)
    bounds = [*offsets[:count], len(content)]
    if number != count or bounds[0] < 64 or any(start > end for start, end in pairwise(bounds)):
        raise _bad_rle(path, layout, f"{number} segments of RLE in another order")
    planes = bytearray(pixels * count)
    for index in range(count):
        plane = _unpack_bits(content[bounds[index] : bounds[index + 1]], pixels)
        if len(plane) != pixels:
            raise _bad_rle(path, layout, "fewer or more pixels")
        sample, byte = divmod(index, width)  # segments come with the highest byte first
        start = sample * pixels * width + width - 1 - byte
        planes[start : start + (pixels - 1) * width + 1 : width] = plane
    return bytes(planes)


def _bad_rle(path: Path, layout: PixelLayout, got: str) -> DataError:
    return DataError(
        f"{path}: expected {layout.rows} x {layout.columns} pixels of {layout.samples} x {layout.allocated} bits in "
        f"RLE, got {got}. The file is damaged: export it again."
    )


def _unpack_bits(content: bytes, wanted: int) -> bytearray:
    """Undo PackBits until ``wanted`` bytes are there, plus one if more would follow."""
    out = bytearray()
    offset, end = 0, len(content)
    while offset < end and len(out) < wanted:
        count = content[offset]
        offset += 1
        if count < 128:
            out += content[offset : offset + count + 1]
            offset += count + 1
        elif count > 128:
            out += content[offset : offset + 1] * (257 - count)
            offset += 1
    if content[offset:].strip(b"\0\x80"):  # a pad byte, or 128, which means nothing
        out.append(0)
    return out
