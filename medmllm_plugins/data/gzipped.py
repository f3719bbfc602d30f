"""Files packed by gzip, with their check sums compared, which SimpleITK leaves out."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from medmllm_plugins.errors import DataError

CHUNK = 1 << 20
"""Bytes read at once while a file is checked."""


def unpacked_head(path: Path, count: int) -> bytes:
    """The first bytes of what is packed.

    Raises:
        DataError: the file is damaged before that.
    """
    try:
        with gzip.open(path) as opened:
            return opened.read(count)
    except (OSError, EOFError, zlib.error):
        raise damaged(path) from None


def unpacked(path: Path) -> bytes:
    """All that is packed.

    Raises:
        DataError: the file is cut short, or the check sum is another.
    """
    parts = []
    try:
        left = path.read_bytes()
        while left:  # a file may be several packed ones, as parallel packers write it
            unpacker = zlib.decompressobj(wbits=31)  # gzip, which zlib checks; in one call, so that other threads run
            parts.append(unpacker.decompress(left))
            if not unpacker.eof:
                raise damaged(path)
            left = unpacker.unused_data.lstrip(b"\0")
    except (OSError, zlib.error):
        raise damaged(path) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def unpacked_size(path: Path, offset: int = 0) -> int:
    """Length in bytes of what is packed behind ``offset``, unpacked in pieces.

    Raises:
        DataError: the file is cut short, or the check sum is another.
    """
    total = 0
    try:
        with path.open("rb") as opened:
            opened.seek(offset)
            with gzip.GzipFile(fileobj=opened) as content:
                while chunk := content.read(CHUNK):
                    total += len(chunk)
    except (OSError, EOFError, zlib.error):
        raise damaged(path) from None
    return total


def damaged(path: Path) -> DataError:
    """What to raise."""
    return DataError(f"{path}: expected whole gzip data, found that they are damaged or cut short; get the file again.")
