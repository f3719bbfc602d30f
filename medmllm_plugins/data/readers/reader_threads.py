"""Limit the number of files that are decoded at once by the processors and the memory of the largest files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from medmllm_plugins.data.readers.decode_limit import max_decoded_bytes
from medmllm_plugins.utils.environment import processors

MAX_THREADS: Final = 8
"""Disks and the interpreter lock keep up with no more."""

_OVERHEAD: Final = 64 * 1024**2
_CGROUP: Final = Path("/sys/fs/cgroup")


def reader_threads() -> int:
    """Return the number of threads that decode images or volumes in parallel, at least 1.

    All thread pools that read files take their size from here.
    """
    return max(1, min(MAX_THREADS, processors(), available_memory() // worst_case_bytes()))


def worst_case_bytes() -> int:
    """Return the most memory that decoding one file takes, in bytes: twice the decode limit and a little more."""
    return 2 * max_decoded_bytes() + _OVERHEAD


def available_memory() -> int:
    """Return the bytes this process may still take.

    The smaller of what the machine has available and what the container's control group (version 2) leaves.
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" without a limit
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return available
    # Files that the system keeps in memory are dropped when memory is needed.
    files = dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", "0")
    return max(0, min(available, limit - used + int(files)))
