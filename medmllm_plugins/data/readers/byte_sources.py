"""Read voxel bytes (raw, compressed or text), decompressed no further than the header states."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np

from medmllm_plugins.errors import DataError

Packing = Literal["raw", "gzip", "zlib", "bzip2", "hex", "text"]
"""How bytes are stored; ``"zlib"`` is one zlib or gzip stream, ``"gzip"`` and ``"bzip2"`` may be several in a row."""

CHUNK: Final = 1 << 20
"""Bytes read from disk at once."""
_LONGEST_NUMBER: Final = 64


class ByteSource:
    """Data behind the current position of a file, returned in order; base class of all encodings."""

    def __init__(self, path: Path, opened: BinaryIO) -> None:
        """Take an open file at the first byte of the data; ``path`` is for messages."""
        self._path = path
        self._opened = opened
        self._total = 0

    def fill(self, view: memoryview) -> None:
        """Fill a writable view of bytes to its end.

        Raises:
            DataError: there is less than that, or the data are damaged.
        """
        filled = 0
        while filled < len(view):
            count = self._fill_some(view[filled:])
            if not count:
                raise DataError(
                    f"{self._path}: expected at least {self._total + len(view) - filled:,} bytes of data as the header "
                    f"states, got {self._total:,}: the file is cut short or damaged; get it again."
                )
            filled += count
            self._total += count

    def skip(self, count: int) -> None:
        """Skip bytes; see :meth:`fill` for the errors."""
        scratch = memoryview(bytearray(min(count, CHUNK)))
        while count:
            step = min(count, len(scratch))
            self.fill(scratch[:step])
            count -= step

    def finish(self) -> None:
        """Check that the data end here, and with them the file, and that checksums are right.

        Raises:
            DataError: there is more, or a checksum is another.
        """
        if self._fill_some(memoryview(bytearray(1))):
            raise self._too_long()

    def _fill_some(self, view: memoryview) -> int:
        """Fill the beginning of a view that is not empty; return the number of bytes, 0 only at the end of the data."""
        data = self._next(len(view))
        view[: len(data)] = data
        return len(data)

    def _next(self, count: int) -> bytes:
        """Return at most ``count`` bytes; none only at the end."""
        return self._opened.read(count)

    def _too_long(self) -> DataError:
        return DataError(
            f"{self._path}: expected {self._total:,} bytes of data as the header states, got more: the header or the "
            "data are damaged; get the file again."
        )

    def _damaged(self) -> DataError:
        return DataError(
            f"{self._path}: expected whole packed data with the right checksum, got damaged ones; get the file again."
        )


class _Raw(ByteSource):
    def _fill_some(self, view: memoryview) -> int:
        return self._opened.readinto(view)  # type: ignore[attr-defined, no-any-return]


class _Packed(ByteSource):
    """Compressed streams with checksums: Adler-32 in zlib, CRC-32 and length in gzip, CRC-32 in bzip2."""

    def __init__(self, path: Path, opened: BinaryIO, start: Callable[[], Any], *, several: bool) -> None:
        super().__init__(path, opened)
        self._start, self._several = start, several
        self._unpacker: Any = start()
        self._pending = b""
        self._ended = False

    def _next(self, count: int) -> bytes:
        while not self._ended:
            exhausted = False
            if not self._pending and getattr(self._unpacker, "needs_input", True):
                self._pending = self._opened.read(CHUNK)
                exhausted = not self._pending
            try:
                data: bytes = self._unpacker.decompress(self._pending, count)
            except (zlib.error, OSError):
                raise self._damaged() from None
            # bz2 keeps what it has not used, zlib hands it back.
            self._pending = getattr(self._unpacker, "unconsumed_tail", b"")
            if self._unpacker.eof:
                self._begin_next(self._unpacker.unused_data)
            elif exhausted and not data:
                raise self._damaged()
            if data:
                return data
        return b""

    def _begin_next(self, content: bytes) -> None:
        """Go on behind the end of a stream; ``content`` has been read from there."""
        while True:
            # Some writers pad the last block with zeros.
            following = content.lstrip(b"\0") if self._several else content
            if following:
                break
            content = self._opened.read(CHUNK)
            if not content:
                self._ended = True
                return
        if not self._several:
            raise self._too_long()
        self._unpacker, self._pending = self._start(), following


class _Text(ByteSource):
    """Values as text, returned as bytes of a type: numbers between white space, or pairs of hexadecimal digits."""

    def __init__(self, path: Path, opened: BinaryIO, dtype: np.dtype[Any] | None) -> None:
        """Take the type of the numbers; ``None`` for hexadecimal digits."""
        super().__init__(path, opened)
        self._dtype = dtype
        self._spare = self._begun = b""

    def _next(self, count: int) -> bytes:
        while not self._spare:
            text = self._opened.read(CHUNK)
            try:
                self._spare = self._hexadecimal(text) if self._dtype is None else self._numbers(text, self._dtype)
            except (ValueError, OverflowError):
                raise self._damaged() from None
            if not text:
                break
        data, self._spare = self._spare[:count], self._spare[count:]
        return data

    def _hexadecimal(self, text: bytes) -> bytes:
        digits = self._begun + text.translate(None, b" \t\r\n\v\f")
        even = len(digits) - len(digits) % 2 if text else len(digits)
        self._begun = digits[even:]
        return bytes.fromhex(digits[:even].decode("ascii"))

    def _numbers(self, text: bytes, dtype: np.dtype[Any]) -> bytes:
        words = (self._begun + text).split()
        # The last word may go on in the next chunk.
        self._begun = words.pop() if text and words and not text[-1:].isspace() else b""
        if len(self._begun) > _LONGEST_NUMBER:
            raise ValueError("a number that is too long")
        kind = float if dtype.kind == "f" else int
        return np.array([kind(word) for word in words], dtype).tobytes()  # refuses what is out of range


def open_source(path: Path, opened: BinaryIO, packing: Packing, dtype: np.dtype[Any]) -> ByteSource:
    """Return a source for the data behind a file's current position; ``dtype`` is needed for text."""
    if packing == "gzip":
        return _Packed(path, opened, lambda: zlib.decompressobj(wbits=31), several=True)
    if packing == "zlib":
        return _Packed(path, opened, lambda: zlib.decompressobj(wbits=47), several=False)
    if packing == "bzip2":
        return _Packed(path, opened, bz2.BZ2Decompressor, several=True)
    if packing in ("hex", "text"):
        return _Text(path, opened, dtype if packing == "text" else None)
    return _Raw(path, opened)
