"""Limit the size of decoded pictures and volumes: one limit for every reader, set by one environment variable.

A header states how much memory its pixels will take. Readers compare that with the limit before they allocate, and
inflate compressed data no further than the header promises.
"""

from __future__ import annotations

import os
import re
from typing import Final

from medmllm_plugins.errors import DataError, OptionError, shown

VARIABLE: Final = "MEDMLLM_MAX_DECODED"
"""Environment variable that sets the limit: bytes, or a number with K, M or G (powers of 1024)."""

DEFAULT: Final = 512 * 1024**2
"""Default limit: 512 MiB, a CT scan of 1,024 slices of 512 x 512 pixels of 16 bits."""

_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def max_decoded_bytes() -> int:
    """Return the limit in bytes.

    Raises:
        OptionError: the variable holds no such number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size <= 0:
        raise OptionError(f"{VARIABLE}: expected a size such as 512M or 2G, got {shown(text)}.")
    return size


def check_decoded_size(path: object, size: int) -> None:
    """Check the size, in bytes, of a file's decoded pixels or voxels before anything is allocated.

    Raises:
        DataError: the size is above the limit.
    """
    if size > (limit := max_decoded_bytes()):
        raise DataError(
            f"{path}: expected at most {limit:,} bytes of decoded data, got a header that states {size:,}. "
            f"If the file is right, raise the limit: {VARIABLE}={_readable(size)}."
        )


def check_volume_size(path: object, voxels: int, stored_bytes: int) -> None:
    """Check the memory for a volume before anything is allocated.

    A voxel counts for at least two bytes, so that the float32 result takes at most twice the limit: 1 GiB by
    default. ``stored_bytes`` counts the data as the file stores them, unpacked.

    Raises:
        DataError: the size is above the limit.
    """
    check_decoded_size(path, max(stored_bytes, 2 * voxels))


def check_documents(path: object, count: int) -> None:
    """Check the number of documents that a file states; each takes about a kilobyte.

    Raises:
        DataError: there are more than fit into the limit, half a million by default.
    """
    check_decoded_size(path, count * 1024)


def _readable(size: int) -> str:
    """Return ``size`` rounded up, as :data:`VARIABLE` is written."""
    return f"{-(-size // 1024**3)}G" if size > 1024**3 else f"{-(-size // 1024**2)}M"
