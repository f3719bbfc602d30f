"""Read NumPy arrays in a zip archive, decompressed no further than their headers state."""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers.numpy_files import ArrayHeader, read_array_header
from medmllm_plugins.utils.regular_files import open_regular, size_of

_LARGEST_DIRECTORY: Final = 1 << 20
"""Bytes of a directory; Python makes an object of hundreds of bytes from each 46."""
_TAIL: Final = 22 + 0xFFFF
_BLOCK: Final = 32 * 1024**2
"""Bytes that are decompressed at once."""
_BLOCKS: Final = 2
"""Blocks in memory, as several threads read in parallel."""


def check_directory(path: Path) -> None:
    """Check the size of an archive's directory, before Python's reader makes objects of it.

    Raises:
        DataError: the file cannot be opened.
        ValueError: there is no directory, or one far too large for a few arrays.
    """
    with open_regular(path) as opened:
        size = size_of(opened)
        start = max(0, size - _TAIL)
        opened.seek(start)
        tail = opened.read(_TAIL)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + 22 > len(tail):
            raise ValueError("no directory at the end of the zip file")
        directory = int.from_bytes(tail[at + 12 : at + 16], "little")
        opened.seek(max(0, start + at - 76))
        wide = opened.read(76)
        # Archives above 4 GiB have a second end record, followed by a pointer to it.
        if wide[56:60] == b"PK\x06\x07" and wide[:4] == b"PK\x06\x06":
            directory = int.from_bytes(wide[40:48], "little")
    if directory > _LARGEST_DIRECTORY:
        raise ValueError(f"a directory of {directory:,} bytes, far more than a few arrays need")


def member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArrayHeader:
    """Read the header of an array, and compare it with the size that the archive states.

    Raises:
        ValueError: it is packed in a way NumPy does not use, no array of numbers, or of another size.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("an array packed in another way than numpy.savez does")
    with archive.open(info) as member:
        header = read_array_header(member)
    if header.length + header.nbytes != info.file_size:
        raise ValueError(
            f"an array of {header.nbytes:,} bytes by its header and {info.file_size - header.length:,} by the archive"
        )
    return header


class PackedRows:
    """A large compressed array, of which blocks of rows are decompressed on demand.

    Rows read in order are decompressed once; going back decompresses everything before them again.
    """

    def __init__(self, path: Path, info: zipfile.ZipInfo, header: ArrayHeader) -> None:
        """Take an array in C order.

        Raises:
            ValueError: it is in Fortran order, where a row lies all over the file.
        """
        if header.fortran:
            raise ValueError("a large packed array in Fortran order; save it in C order")
        self._path, self._info, self._header = path, info, header
        self._row = math.prod(header.shape[1:]) * header.dtype.itemsize
        self._rows = max(1, _BLOCK // max(1, self._row))
        self._blocks: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._member: Any = None

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Return a row; see :func:`zipfile.ZipFile.open` for the errors."""
        if not 0 <= index < self._header.shape[0]:
            raise IndexError(index)
        block, position = divmod(index, self._rows)
        with self._lock:
            if block not in self._blocks:
                while len(self._blocks) >= _BLOCKS:
                    self._blocks.popitem(last=False)
                self._blocks[block] = self._unpack(block)
            self._blocks.move_to_end(block)
            row: npt.NDArray[Any] = self._blocks[block][position]
            return row

    def _unpack(self, block: int) -> npt.NDArray[Any]:
        if self._member is None:
            # Stays open as long as the array, to continue from its position.
            self._member = zipfile.ZipFile(self._path).open(self._info)  # noqa: SIM115
        first = block * self._rows
        count = min(self._rows, self._header.shape[0] - first)
        start = self._header.length + first * self._row
        if self._member.tell() != start:
            self._member.seek(start, os.SEEK_SET)
        content = self._member.read(count * self._row)
        return np.frombuffer(content, self._header.dtype).reshape(count, *self._header.shape[1:])
