"""Read headers of NumPy's ``.npy`` format with a bound on their length; no pickles, as they run code."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular, size_of

MAGIC: Final = b"\x93NUMPY"
_LONGEST: Final = 10_000
"""Longest header that NumPy itself accepts, in bytes."""


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """A ``.npy`` header, and its length in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(opened: IO[bytes]) -> ArrayHeader:
    """Read the header at a stream's position, and no byte more.

    Raises:
        ValueError: there is none, it is longer than NumPy allows, or states Python objects or negative sizes.
    """
    start = opened.read(8)
    if len(start) < 8 or start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise ValueError("no NumPy header")
    field = opened.read(2 if start[6] == 1 else 4)
    length = int.from_bytes(field, "little")
    if length > _LONGEST:  # NumPy would read all of it first
        raise ValueError("a NumPy header that is too long")
    text = opened.read(length)
    if len(text) < length:
        raise ValueError("a NumPy header that is cut short")
    # NumPy's own parser; it meets damaged text with errors of many types.
    parse = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = parse(io.BytesIO(field + text))
    except Exception as error:
        raise ValueError(f"a damaged NumPy header ({type(error).__name__})") from None
    if dtype.hasobject or any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError("an array of Python objects, or of sizes below 0")
    return ArrayHeader(tuple(shape), bool(fortran), dtype, len(start) + len(field) + length)


def array_file_header(path: Path) -> ArrayHeader:
    """Read the header of a ``.npy`` file, which has to hold the whole array and nothing else.

    Raises:
        DataError: it does not.
    """
    with open_regular(path) as opened:
        try:
            array = read_array_header(opened)
        except ValueError as error:
            raise DataError(
                f"{path}: expected a whole NumPy array of numbers, got {error}. Save it again with numpy.save."
            ) from None
        held = size_of(opened) - array.length
    if held != array.nbytes:
        raise DataError(
            f"{path}: expected a NumPy array of {array.nbytes:,} bytes as its header states, got {held:,}: the file is "
            "cut short or damaged. Save it again with numpy.save."
        )
    return array
