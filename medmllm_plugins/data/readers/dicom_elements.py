"""The data elements of a DICOM file (PS3.5 section 7), walked within the file's own length.

Nothing is allocated because a header says so: each length is compared with what encloses it (an item, a sequence, the
file) before it is believed, elements that nobody asked for are stepped over, and compressed data sets are inflated with
a bound. Only raw bytes of the wanted tags come back, so that there is nothing to warn of and nothing to quote.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from medmllm_plugins.data.readers.decode_limit import check_decoded_size
from medmllm_plugins.errors import DataError

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
PIXEL_TAGS: Final = {0x7FE00008: "<f4", 0x7FE00009: "<f8", 0x7FE00010: ""}
"""The elements that hold pixels; of those that hold floats, their type."""
UNDEFINED: Final = 0xFFFFFFFF
MAX_DEPTH: Final = 32
"""Deepest nesting of sequences."""
MAX_ELEMENTS: Final = 500_000
"""Most elements of a file: an enhanced scan of some thousand frames; walking them takes about a second."""
MAX_VALUE: Final = 1 << 20
"""Longest value of a wanted tag, in bytes; look-up tables of palettes have up to 128 KiB."""

Wanted: TypeAlias = Mapping[int, "Wanted | None"]
"""Tags to keep; of sequences, the tags to keep of their items."""
Values: TypeAlias = "dict[int, bytes | list[Values]]"
"""Raw bytes of a tag; of a sequence, its items."""

_LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_HEADS: Final = {order: struct.Struct(f"{order}HH2sHI").unpack for order in "<>"}
_LENGTHS: Final = {order: struct.Struct(f"{order}I").unpack_from for order in "<>"}
_CHUNK: Final = 1 << 14
_HEADER_BYTES: Final = 1 << 24
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Coding:
    """How elements are written: whether their type is left out, and the byte order as ``struct`` calls it."""

    implicit: bool
    order: str


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixels are.

    Attributes:
        tag: one of :data:`PIXEL_TAGS`.
        offset: where the value begins, in the file, or of a deflated data set in the inflated one.
        length: bytes of the value; of encapsulated pixels those of all fragments.
        kind: the type that is written, ``b"OB"`` or ``b"OW"``; ``b""`` where none is.
        fragments: of encapsulated pixels, offset and length of each item, the offset table first; else ``None``.
    """

    tag: int
    offset: int
    length: int
    kind: bytes = b""
    fragments: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class Elements:
    """What a walk through a file returns.

    Attributes:
        syntax: UID of the transfer syntax; of files that state none, what their bytes look like.
        coding: how the data set is written.
        values: the wanted tags.
        pixels: where the pixels are; ``None`` where the file has none.
    """

    syntax: str
    coding: Coding
    values: Values = field(default_factory=dict)
    pixels: PixelElement | None = None


class Source:
    """Bytes of an open file, or of a data set in memory, read in windows so that large values are never touched."""

    __slots__ = ("_base", "_file", "_window", "size")

    def __init__(self, opened: BinaryIO | None, size: int, content: bytes = b"") -> None:
        self._file, self.size = opened, size
        self._base, self._window = 0, content

    def at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset`` on, or what is left of them."""
        start = offset - self._base
        if (start < 0 or start + count > len(self._window)) and self._file is not None:
            self._file.seek(offset)
            self._window, self._base, start = self._file.read(max(count, _CHUNK)), offset, 0
        return self._window[start : start + count]


def starts_like_dicom(start: bytes) -> bool:
    """Whether a file has the DICOM prefix (128 bytes, then ``DICM``), or begins with an element as files without it do.

    Args:
        start: the first 132 bytes of the file.
    """
    return start[128:132] == b"DICM" or _bare_coding(start) is not None


def _bare_coding(start: bytes) -> Coding | None:
    """How a file without the prefix is written, by its first element, of group 2 or 8; ``None`` where it is none."""
    if len(start) < 8:
        return None
    for order in "<>":
        group, number, length = struct.unpack_from(f"{order}HHI", start)
        if group not in (0x0002, 0x0008) or number > 0x0100:
            continue
        if start[4:6] in _SHORT or start[4:6] in _LONG:
            return Coding(False, order)
        # Without a type: a length of group 8, or one of the short values that come first in it.
        if order == "<" and length <= 0x100 and (number or length == 4):
            return Coding(True, order)
    return None


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a file.

    Raises:
        DataError: it is missing, empty or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for whoever writes to it
            raise DataError(f"{path}: expected a file, got a folder, pipe or device. Leave it out.")
        with path.open("rb") as opened:
            size = opened.seek(0, 2)
            if not size:
                raise DataError(f"{path}: expected a DICOM file, got an empty file (0 bytes). Get the file again.")
            yield Source(opened, size)
    except OSError as error:
        raise DataError(f"{path}: expected a file, got one that cannot be read ({error.strerror}).") from error


def read_elements(
    path: Path, source: Source, wanted: Wanted, check: Callable[[Elements], object] | None = None
) -> tuple[Elements, Source]:
    """Walk through a file and keep the wanted tags.

    Args:
        path: the file, for messages.
        source: the open file.
        wanted: tags to keep.
        check: compares the header of a large deflated data set with its pixels, before these are inflated; without it
            they are not.

    Returns:
        The elements, and where they were read from: ``source``, or the inflated data set.

    Raises:
        DataError: the file is no DICOM; an element is longer than what it lies in, or too many or nested too deeply;
            the file ends within an element; or more comes out of a deflated one than its header states.
    """
    start = source.at(0, 132)
    prefixed = start[128:] == b"DICM"
    bare = None if prefixed else _bare_coding(start)
    if not prefixed and bare is None:
        raise DataError(
            f"{path}: expected a DICOM file, got one without the prefix DICM that does not begin with an element "
            "either. Move other files out of the folder, or get the file again."
        )
    offset, stated = _meta(path, source, 132 if prefixed else 0)
    if stated == DEFLATED:
        return _deflated(path, source, offset, wanted, check)
    coding = _coding(source.at(offset, 8), stated)
    walk = _Walk(path, source)
    values = walk.dataset(offset, source.size, coding, wanted)
    syntax = stated or (BIG_ENDIAN if coding.order == ">" else IMPLICIT if coding.implicit else EXPLICIT)
    return Elements(syntax, coding, values, walk.pixels), source


def _coding(start: bytes, stated: str) -> Coding:
    """How the data set is written: as its first element shows, where that is not what the transfer syntax says."""
    order = ">" if stated == BIG_ENDIAN else "<"
    if not stated and (bare := _bare_coding(start)) is not None:
        return bare
    return Coding(start[4:6] not in _SHORT and start[4:6] not in _LONG, order)


def _meta(path: Path, source: Source, offset: int) -> tuple[int, str]:
    """Where the data set begins, and its transfer syntax, from the elements of group 2; ``""`` where none is stated."""
    coding, syntax = Coding(False, "<"), ""
    walk = _Walk(path, source)
    while source.at(offset, 2) == b"\x02\x00":
        tag, _, start, length = walk.element(offset, source.size, coding)
        if length == UNDEFINED:
            raise walk.fault(tag, offset, "a length that is not stated")
        if tag == 0x00020010:
            syntax = walk.value(tag, start, length).decode("ascii", "replace").strip(" \0")
        offset = start + length
    return offset, syntax


def _deflated(
    path: Path, source: Source, offset: int, wanted: Wanted, check: Callable[[Elements], object] | None
) -> tuple[Elements, Source]:
    """Inflate a data set as far as its pixels, and then as far as these go and no further."""
    check_decoded_size(path, source.size)  # what is deflated is held in memory too
    packed = source.at(offset, source.size - offset)
    coding = Coding(False, "<")
    head = _inflate(path, packed, _HEADER_BYTES)
    if len(head) == _HEADER_BYTES:
        walk = _Walk(path, Source(None, len(head), head), partial=True)
        found = Elements(DEFLATED, coding, walk.dataset(0, len(head), coding, wanted), walk.pixels)
        if walk.pixels is None:
            raise walk.fault(0, len(head), f"{len(head):,} bytes without pixels")
        if check is None:
            return found, source
        check(found)
        size = walk.pixels.offset + walk.pixels.length
        check_decoded_size(path, size)
        head = _inflate(path, packed, size + _CHUNK)
        if len(head) == size + _CHUNK:
            raise DataError(
                f"{path}: expected a deflated data set of {size:,} bytes by its header, got more. The file is damaged: "
                "get it again."
            )
    inflated = Source(None, len(head), head)
    whole = _Walk(path, inflated)
    values = whole.dataset(0, len(head), coding, wanted)
    return Elements(DEFLATED, coding, values, whole.pixels), inflated


def _inflate(path: Path, packed: bytes, most: int) -> bytes:
    """Inflate at most so many bytes of a raw deflate stream."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, most)
    except zlib.error:
        raise DataError(f"{path}: expected a deflated DICOM data set, got damaged data. Get the file again.") from None
    if len(content) < most and not inflater.eof:
        raise DataError(
            f"{path}: expected a whole deflated DICOM data set, got one that is cut short. Get the file again."
        )
    return content


class _Walk:
    """One walk through a data set, with what is counted on the way."""

    def __init__(self, path: Path, source: Source, *, partial: bool = False) -> None:
        self.pixels: PixelElement | None = None
        self._path, self._source, self._partial = path, source, partial
        self._left = MAX_ELEMENTS

    def fault(self, tag: int, offset: int, what: str) -> DataError:
        """Return what to raise about an element."""
        return DataError(
            f"{self._path}: expected whole DICOM elements, got {what} in the element "
            f"({tag >> 16:04X},{tag & 0xFFFF:04X}) at byte {offset:,}. The file is damaged or cut short: get it again."
        )

    def value(self, tag: int, offset: int, length: int) -> bytes:
        """Return the bytes of a wanted value."""
        if length > MAX_VALUE:
            raise self.fault(tag, offset, f"a value of {length:,} bytes")
        return self._source.at(offset, length)

    def element(self, offset: int, end: int, coding: Coding) -> tuple[int, bytes, int, int]:
        """Return tag, type (``b""`` where none is written), start and length of the value of an element."""
        self._left -= 1
        start = self._source.at(offset, 12)
        if len(start) < 12:  # the end of what there is
            if len(start) < 8:
                raise self.fault(0, offset, f"{len(start)} bytes of an element's beginning")
            start = start.ljust(12, b"\0")
        group, number, kind, length, longer = _HEADS[coding.order](start)
        tag = group << 16 | number
        if self._left < 0:
            raise self.fault(tag, offset, f"more than {MAX_ELEMENTS:,} elements, the last")
        size = 8
        if coding.implicit or group == 0xFFFE:
            kind, length = b"", _LENGTHS[coding.order](start, 4)[0]
        elif kind in _SHORT:
            pass
        elif not (b"AA" <= kind <= b"ZZ" and kind.isalpha()):  # an element without its type among others with it
            kind, length = b"", _LENGTHS[coding.order](start, 4)[0]
        elif kind in _LONG or not length:
            size, length = 12, longer
        at = offset + size
        if length == UNDEFINED and at <= end:
            return tag, kind, at, length
        if at + length > end and not (self._partial and tag in PIXEL_TAGS):
            raise self.fault(tag, offset, f"{length:,} bytes where {max(0, end - at):,} are left")
        return tag, kind, at, length

    def dataset(self, offset: int, end: int, coding: Coding, wanted: Wanted) -> Values:
        """Walk through the file's own level."""
        return self._dataset(offset, end, coding, wanted, 0, delimited=False)[0]

    def _dataset(
        self, offset: int, end: int, coding: Coding, wanted: Wanted, depth: int, *, delimited: bool
    ) -> tuple[Values, int]:
        """Walk through elements up to ``end``, or to the end of an item of undefined length."""
        values: Values = {}
        top = depth == 0
        while offset < end:
            # Behind the pixels: less than an element, such as the line's end of a badly cut download, or padding.
            if top and self.pixels is not None and (end - offset < 8 or self._only_zeros(offset, end)):
                return values, end
            tag, kind, start, length = self.element(offset, end, coding)
            if length != UNDEFINED and tag not in wanted and tag not in PIXEL_TAGS and tag < 0xFFFE0000:
                offset = start + length
                continue
            if tag >> 16 == 0xFFFE:
                if delimited and tag == _ITEM_END:
                    return values, start
                if top and tag == _SEQUENCE_END and not length:  # left over where pixels were unpacked
                    offset = start
                    continue
                raise self.fault(tag, offset, "a delimiter that does not belong there")
            if length != UNDEFINED:
                if tag in wanted:
                    inner = wanted[tag]
                    if inner is None:
                        values[tag] = self.value(tag, start, length)
                    else:
                        within = self._coding_within(kind, start, coding)
                        values[tag] = self._items(start, start + length, within, inner, depth + 1, delimited=False)[0]
                if top and tag in PIXEL_TAGS:
                    self.pixels = PixelElement(tag, start, length, kind)
                    if self._partial and start + length > end:
                        return values, end
                offset = start + length
            elif tag in PIXEL_TAGS and kind not in (b"SQ",):
                fragments, offset = self._fragments(tag, start, end, coding)
                if top:
                    total = sum(size for _, size in fragments)
                    self.pixels = PixelElement(tag, start, total, kind, fragments)
            elif kind in (b"", b"SQ", b"UN"):
                within = self._coding_within(kind, start, coding)
                items, offset = self._items(start, end, within, wanted.get(tag) or {}, depth + 1, delimited=True)
                if wanted.get(tag) is not None:
                    values[tag] = items
            elif kind in (b"OB", b"OW"):  # fragments of something private
                _, offset = self._fragments(tag, start, end, coding)
            else:
                raise self.fault(tag, offset, "a length that is not stated")
        if delimited:
            raise self.fault(0xFFFEE00D, offset, "no delimiter")
        return values, offset

    def _coding_within(self, kind: bytes, start: int, coding: Coding) -> Coding:
        """How the items of a sequence are written.

        A sequence whose type the writer did not know is written without types (PS3.5 6.2.2), but by some with them, as
        its first element shows: a type and a length that a value without one would hardly have.
        """
        if kind != b"UN":
            return coding
        first = self._source.at(start + 8, 8)
        typed = (first[4:6] in _SHORT and first[6:] != b"\0\0") or (first[4:6] in _LONG and first[6:] == b"\0\0")
        return coding if typed else Coding(True, "<")

    def _items(
        self, offset: int, end: int, coding: Coding, wanted: Wanted, depth: int, *, delimited: bool
    ) -> tuple[list[Values], int]:
        """Walk through the items of a sequence."""
        if depth > MAX_DEPTH:
            raise self.fault(_ITEM, offset, f"more than {MAX_DEPTH} sequences within each other")
        items: list[Values] = []
        while offset < end:
            tag, _, start, length = self.element(offset, end, coding)
            if delimited and tag == _SEQUENCE_END:
                return items, start
            if tag != _ITEM:
                raise self.fault(tag, offset, "something else than an item")
            if length == UNDEFINED:
                item, offset = self._dataset(start, end, coding, wanted, depth, delimited=True)
            else:
                offset = start + length
                item = self._dataset(start, offset, coding, wanted, depth, delimited=False)[0] if wanted else {}
            items.append(item)
        if delimited:
            raise self.fault(_SEQUENCE_END, offset, "no delimiter")
        return items, offset

    def _fragments(self, tag: int, offset: int, end: int, coding: Coding) -> tuple[tuple[tuple[int, int], ...], int]:
        """Walk through the fragments of encapsulated pixels (PS3.5 A.4)."""
        fragments: list[tuple[int, int]] = []
        while offset < end:
            item, _, start, length = self.element(offset, end, coding)
            if item == _SEQUENCE_END:
                return tuple(fragments), start
            if item != _ITEM or length == UNDEFINED:
                raise self.fault(tag, offset, "something else than a fragment of pixels")
            fragments.append((start, length))
            offset = start + length
        raise self.fault(tag, offset, "no delimiter behind the fragments")

    def _only_zeros(self, offset: int, end: int) -> bool:
        """Whether only zeros follow, to which some archives pad files."""
        if self._source.at(offset, 4).strip(b"\0"):
            return False
        while offset < end:
            chunk = self._source.at(offset, min(_CHUNK, end - offset))
            if chunk.strip(b"\0"):
                return False
            offset += len(chunk) or end
        return True
