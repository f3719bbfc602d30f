"""Parse the data elements of a DICOM file with pydicom, within bounds that pydicom does not check.

``pydicom.dcmread`` believes the lengths that a file states: it reads elements that are longer than the file short
without an error, allocates what a damaged header asks for, and quotes header values (patient data) in warnings. Here,
:func:`pydicom.filereader.data_element_generator` parses the elements of each data set, and a callback compares every
length with what encloses it (item, sequence, file) before pydicom reads or skips the value. Items of sequences and
fragments of pixel data are walked here for the same reason. Only raw bytes of the selected attributes are read.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn, TypeAlias

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medmllm_plugins.data.readers.decode_limit import check_decoded_size
from medmllm_plugins.data.readers.dicom_prefix import PREFIX_END, Encoding, encoding_without_prefix, has_vr
from medmllm_plugins.errors import DataError

PIXEL_TAGS: Final = {0x7FE00008: "<f4", 0x7FE00009: "<f8", 0x7FE00010: ""}
"""Tags of pixel data, and the NumPy type of those that hold floats."""
MAX_DEPTH: Final = 32
"""Deepest nesting of sequences."""
MAX_ELEMENTS: Final = 500_000
"""Most elements of a file: an enhanced scan of some thousand frames; walking them takes about a second."""
MAX_VALUE: Final = 1 << 20
"""Longest value of a selected attribute, in bytes; look-up tables of palettes have up to 128 KiB."""

Values: TypeAlias = "dict[str, bytes | list[Values]]"
"""Raw bytes of attributes by keyword; of a sequence, its items."""

_UNDEFINED: Final = 0xFFFFFFFF
_CHARACTER_SET: Final = 0x00080005
_WINDOW: Final = 1 << 14
"""Bytes that are parsed at once."""
_LONG: Final = _WINDOW // 2
"""Elements from this length on are not read by pydicom."""
_HEADER_BYTES: Final = 1 << 24
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD


class Selection:
    """DICOM keywords to read from a data set, and those of sequences with the selection for their items."""

    __slots__ = ("keywords", "sequences", "tags")

    def __init__(self, *keywords: str, **sequences: Selection) -> None:
        tags = {keyword: tag_for_keyword(keyword) or 0 for keyword in (*keywords, *sequences)}
        self.keywords = {tags[keyword]: keyword for keyword in keywords}
        self.sequences = {tags[keyword]: (keyword, inner) for keyword, inner in sequences.items()}
        self.tags: list[BaseTag | int] = [*self.keywords, *self.sequences, *PIXEL_TAGS]


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Position of the pixel data.

    Attributes:
        tag: one of :data:`PIXEL_TAGS`.
        offset: first byte of the value, in the file, or of a deflated data set in the inflated one.
        length: bytes of the value; of encapsulated pixels those of all fragments.
        vr: the value representation, ``"OB"`` or ``"OW"``; ``""`` if none is written.
        fragments: of encapsulated pixels, offset and length of each item, the offset table first; else ``None``.
    """

    tag: int
    offset: int
    length: int
    vr: str = ""
    fragments: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class Elements:
    """Parsed elements of a file; without a transfer syntax in the file, ``syntax`` is the one that fits its bytes."""

    syntax: str
    encoding: Encoding
    values: Values = field(default_factory=dict)
    pixels: PixelElement | None = None


def read_at(opened: BinaryIO, offset: int, count: int) -> bytes:
    """Return ``count`` bytes from ``offset`` on, or fewer at the end of the file."""
    opened.seek(offset)
    return opened.read(count)


def read_elements(
    path: Path, opened: BinaryIO, selection: Selection, until: int = _UNDEFINED
) -> tuple[Elements, BinaryIO]:
    """Parse a file up to the tag ``until`` (a deflated one to its end) and keep the selected attributes.

    Returns:
        The elements, and the stream that their offsets refer to: ``opened``, or the inflated data set.

    Raises:
        DataError: the file is no DICOM; an element is longer than what it lies in, or too many, or nested too deeply;
            the file ends within an element; or more comes out of a deflated one than its header states.
    """
    size = opened.seek(0, os.SEEK_END)
    start = read_at(opened, 0, PREFIX_END)
    prefixed = start[128:] == b"DICM"
    if not prefixed and encoding_without_prefix(start) is None:
        got = "one without the prefix DICM that does not begin with an element either" if size else "an empty file"
        raise DataError(
            f"{path}: expected a DICOM file, got {got}. Move other files out of the folder, or get the file again."
        )
    walk = _Walk(path, opened)
    meta, offset = walk.dataset(
        PREFIX_END if prefixed else 0, _Scope(size, Encoding(False, "<"), _FILE_META, until=0x0002FFFF)
    )
    stated = meta.get("TransferSyntaxUID", b"")
    syntax = stated.decode("ascii", "replace").strip(" \0") if isinstance(stated, bytes) else ""
    if syntax == DeflatedExplicitVRLittleEndian:
        check_decoded_size(path, size)  # the deflated bytes are held in memory too
        return _read_deflated(path, read_at(opened, offset, size - offset), selection)
    start = read_at(opened, offset, 8)
    encoding = None if syntax else encoding_without_prefix(start)
    # The first element decides where it is not written as the transfer syntax says.
    encoding = encoding or Encoding(not has_vr(start), ">" if syntax == ExplicitVRBigEndian else "<")
    if not syntax:
        syntax = ImplicitVRLittleEndian if encoding.implicit else ExplicitVRLittleEndian
        syntax = ExplicitVRBigEndian if encoding.byte_order == ">" else syntax
    values, _ = walk.dataset(offset, _Scope(size, encoding, selection, until=until))
    return Elements(syntax, encoding, values, walk.pixels), opened


def _read_deflated(path: Path, packed: bytes, selection: Selection) -> tuple[Elements, BinaryIO]:
    """Inflate a data set up to its pixels, and then as far as their stated length and no further."""
    encoding = Encoding(False, "<")
    content = _inflate(path, packed, _HEADER_BYTES)
    if len(content) == _HEADER_BYTES:
        walk = _Walk(path, io.BytesIO(content), partial=True)
        walk.dataset(0, _Scope(len(content), encoding, selection))
        stated = len(content) if walk.pixels is None else walk.pixels.offset + walk.pixels.length
        check_decoded_size(path, stated)
        content = _inflate(path, packed, stated + _WINDOW)
        if walk.pixels is None or len(content) == stated + _WINDOW:
            raise DataError(
                f"{path}: expected a deflated data set of {stated:,} bytes by its header, got more. The file is "
                "damaged: get it again."
            )
    stream = io.BytesIO(content)
    walk = _Walk(path, stream)
    values, _ = walk.dataset(0, _Scope(len(content), encoding, selection))
    return Elements(DeflatedExplicitVRLittleEndian, encoding, values, walk.pixels), stream


def _inflate(path: Path, packed: bytes, limit: int) -> bytes:
    """Inflate at most ``limit`` bytes of a raw deflate stream."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, limit)
    except zlib.error:
        raise DataError(f"{path}: expected a deflated DICOM data set, got damaged data. Get the file again.") from None
    if len(content) < limit and not inflater.eof:
        raise DataError(f"{path}: expected a whole deflated DICOM data set, got a truncated one. Get the file again.")
    return content


class _Element(NamedTuple):
    """An element that pydicom has parsed; ``value`` is missing if it was not read."""

    tag: int
    vr: str | None
    start: int
    length: int
    value: bytes | None


class _Scope(NamedTuple):
    """A data set, or the items of a sequence, to parse up to ``end``, a delimiter, or the tag ``until``."""

    end: int
    encoding: Encoding
    selection: Selection
    depth: int = 0
    delimited: bool = False
    until: int = _UNDEFINED


class _Walk:
    """One pass over a file; counts elements and keeps the position of the pixels, in which a partial stream may end."""

    def __init__(self, path: Path, opened: BinaryIO, *, partial: bool = False) -> None:
        self.pixels: PixelElement | None = None
        self._path, self._opened, self._partial = path, opened, partial
        self._left = MAX_ELEMENTS

    def dataset(self, offset: int, scope: _Scope) -> tuple[Values, int]:
        """Parse a data set from ``offset`` on; return its values, and the position behind it."""
        values: Values = {}
        reason = ""
        end = scope.end
        while offset < end and not reason:
            # Writers and archives leave line ends or zeros behind the pixels.
            if not scope.depth and self.pixels is not None and (end - offset < 8 or self._only_zeros(offset, end)):
                return values, end
            start = offset
            elements, reason, offset = self._window(offset, scope)
            for element in elements:
                offset = max(offset, self._keep(element, scope, values))
            if offset == start and not reason:
                self._fail(offset, f"{end - offset} bytes of one")
        if reason != "until" and (reason == "delimiter") != scope.delimited:
            self._fail(offset, "no delimiter" if scope.delimited else "a delimiter that does not belong there")
        return values, offset

    def _window(self, offset: int, scope: _Scope) -> tuple[list[_Element], str, int]:
        """Let pydicom parse the elements in one window of the file.

        It is stopped at elements that are long or of undefined length, and where an element begins in the second half
        of a window that is not the last: all others end within the window, or go beyond the end of the data set.

        Returns:
            The selected elements, and the one that stopped pydicom; ``"delimiter"`` or ``"until"`` if the data set
            ends here, else ``""``; and the position to go on from.
        """
        content = read_at(self._opened, offset, min(_WINDOW, scope.end - offset))
        window = io.BytesIO(content)
        tell, until = window.tell, scope.until
        last = _LONG if offset + len(content) < scope.end else len(content) + 12
        after, left, reason = 0, self._left, ""
        stopped: list[_Element] = []

        def stop(tag: int, vr: str | None, length: int) -> bool:
            nonlocal after, left, reason
            left -= 1
            start = tell()
            number = int(tag)  # comparing pydicom's tags is slow
            if number > until:
                reason = "until"
            # pydicom would interpret the character set, and warn of unknown ones.
            elif length >= _LONG or number >= 0xFFFE0000 or number == _CHARACTER_SET:
                stopped.append(_Element(number, vr, offset + start, length, None))
            elif start < last and left >= 0:
                after = start + length
                return False
            return True

        encoding, tags = scope.encoding, scope.selection.tags
        parsed = data_element_generator(
            window, encoding.implicit, encoding.byte_order == "<", stop_when=stop, specific_tags=tags
        )
        try:
            elements = [
                _Element(int(raw.tag), raw.VR, offset + raw.value_tell, raw.length, raw.value or b"")
                for raw in parsed
                if isinstance(raw, RawDataElement)  # sequences of undefined length, the other type, stop pydicom
            ]
        except struct.error:
            self._fail(offset + after, "a part of one")
        if left < 0:
            self._fail(offset + after, f"more than {MAX_ELEMENTS:,}")
        if after > len(content):
            self._fail(scope.end, f"one that is {after - len(content):,} bytes too long")
        self._left = left
        if tell() - after == 8:  # behind a delimiter, pydicom ends by itself
            return elements, "delimiter", offset + tell()
        return elements + stopped, reason, offset + after

    def _keep(self, element: _Element, scope: _Scope, values: Values) -> int:
        """Keep what is needed of an element, and return its end."""
        tag, vr, start, length, value = element
        selection, end = scope.selection, scope.end
        undefined = length == _UNDEFINED
        pixels = tag in PIXEL_TAGS and vr != "SQ"
        after = start if undefined else start + length
        if after > end and not (self._partial and pixels):
            self._fail(start, f"one of {length:,} bytes where {max(0, end - start):,} are left")
        if tag in selection.keywords and not undefined:
            if length > MAX_VALUE:
                self._fail(start, f"a value of {length:,} bytes")
            values[selection.keywords[tag]] = read_at(self._opened, start, length) if value is None else value
        elif tag >= 0xFFFE0000:
            if scope.depth or tag != _SEQUENCE_END or length:  # one may be left over where pixels were unpacked
                self._fail(start, "a delimiter that does not belong there")
        elif pixels or (undefined and vr in ("OB", "OW")):
            fragments = None
            if undefined:
                fragments, after = self._fragments(start, scope)
                length = sum(size for _, size in fragments)
            if pixels and not scope.depth:
                self.pixels = PixelElement(tag, start, length, vr or "", fragments)
        elif undefined or tag in selection.sequences:
            if undefined and vr not in (None, "SQ", "UN"):
                self._fail(start, "a length that is not stated")
            keyword, inner = selection.sequences.get(tag, ("", _NOTHING))
            encoding = self._encoding_of_items(vr, start, scope.encoding)
            items = _Scope(end if undefined else after, encoding, inner, scope.depth + 1, delimited=undefined)
            values[keyword], after = self._items(start, items)
        return min(after, end)

    def _encoding_of_items(self, vr: str | None, start: int, encoding: Encoding) -> Encoding:
        """Return the encoding of a sequence's items.

        Sequences of VR "UN" are written without VRs (PS3.5 6.2.2), but by some writers with them: their first element
        then shows a VR and a length that fits it.
        """
        if vr != "UN":
            return encoding
        first = read_at(self._opened, start + 8, 8)
        long = first[4:6].decode("latin-1") in EXPLICIT_VR_LENGTH_32
        return encoding if has_vr(first) and long == (first[6:] == b"\0\0") else Encoding(True, "<")

    def _items(self, offset: int, scope: _Scope) -> tuple[list[Values], int]:
        """Parse the items of a sequence; return them and the position behind them."""
        if scope.depth > MAX_DEPTH:
            self._fail(offset, f"more than {MAX_DEPTH} sequences within each other")
        items: list[Values] = []
        while offset < scope.end:
            tag, start, length = self._item(offset, scope)
            if scope.delimited and tag == _SEQUENCE_END:
                return items, start
            if tag != _ITEM:
                self._fail(offset, "something else than an item")
            item: Values = {}
            if length == _UNDEFINED:
                item, offset = self.dataset(start, scope._replace(delimited=True))
            else:
                offset = start + length
                if scope.selection is not _NOTHING:
                    item, _ = self.dataset(start, scope._replace(end=offset, delimited=False))
            items.append(item)
        if scope.delimited:
            self._fail(offset, "no delimiter")
        return items, offset

    def _fragments(self, offset: int, scope: _Scope) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return offset and length of the fragments of encapsulated pixels (PS3.5 A.4), and the end of the last."""
        fragments: list[tuple[int, int]] = []
        while offset < scope.end:
            item, start, length = self._item(offset, scope)
            if item == _SEQUENCE_END:
                return tuple(fragments), start
            if item != _ITEM or length == _UNDEFINED:
                self._fail(offset, "something else than a fragment of pixels")
            fragments.append((start, length))
            offset = start + length
        self._fail(offset, "no delimiter behind the fragments")

    def _item(self, offset: int, scope: _Scope) -> tuple[int, int, int]:
        """Return tag, start and length of an item or delimiter."""
        head = read_at(self._opened, offset, 8)
        if len(head) < 8:
            self._fail(offset, f"{len(head)} bytes of an item's beginning")
        group, number, length = struct.unpack(f"{scope.encoding.byte_order}HHI", head)
        tag = group << 16 | number
        self._left -= 1
        if self._left < 0 or offset + 8 + (0 if length == _UNDEFINED else length) > scope.end:
            self._fail(offset, f"an item of {length:,} bytes where {max(0, scope.end - offset - 8):,} are left")
        return tag, offset + 8, length

    def _only_zeros(self, offset: int, end: int) -> bool:
        """Return whether only zeros follow, to which some archives pad files."""
        self._opened.seek(offset)
        while offset < end:
            chunk = self._opened.read(min(_WINDOW, end - offset))
            if not chunk or chunk.strip(b"\0"):
                return False
            offset += len(chunk)
        return True

    def _fail(self, offset: int, got: str) -> NoReturn:
        raise DataError(
            f"{self._path}: expected whole DICOM elements, got {got} at byte {offset:,}. The file is damaged or cut "
            "short: get it again."
        )


_NOTHING: Final = Selection()
_FILE_META: Final = Selection("TransferSyntaxUID")
