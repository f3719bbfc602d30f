"""How many files are decoded at once: no more than there are processors, or than fit into memory at their worst."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from medmllm_plugins.data.readers.decode_limit import max_decoded_bytes
from medmllm_plugins.utils.processors import processors

MOST: Final = 8
"""Threads beyond these gain nothing, as disks and the interpreter's lock keep up with no more."""

_OVERHEAD: Final = 64 * 1024**2
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def reader_threads() -> int:
    """Return the number of threads that decode images or volumes side by side, at least 1.

    A file takes at most twice the limit of :mod:`medmllm_plugins.data.readers.decode_limit` and a little more. All pools of
    threads that read files take their size from here.
    """
    threads = min(MOST, processors())
    memory = available_memory()
    return threads if memory is None else max(1, min(threads, memory // worst_case_bytes()))


def worst_case_bytes() -> int:
    """Return the most memory that decoding one file takes, in bytes."""
    return 2 * max_decoded_bytes() + _OVERHEAD


def available_memory() -> int | None:
    """Return the bytes this process may still take; ``None`` where the system does not tell.

    The smaller of what the machine has free and what the container's control group (version 2) leaves.
    """
    free = [size for size in (_machine(), _container()) if size is not None]
    if free:
        return max(0, min(free))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _machine() -> int | None:
    kilobytes = _numbers(_MEMINFO).get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    # Files the system keeps in memory go when memory is asked for.
    return limit - used + _numbers(_CGROUP / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """The numbers of a file of lines of a name and a number; empty where there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
