"""Peak memory of this process, on every system."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB
