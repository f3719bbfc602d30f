"""What this process runs with: versions of the packages that move the numbers, processors, and memory."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import metadata

PACKAGES = (
    *(
        "medmllm-plugins",
        "lmms-eval",
        "torch",
        "torchvision",
        "transformers",
        "tokenizers",
        "safetensors",
        "accelerate",
    ),
    *(
        "datasets",
        "bokeh",
        "captum",
        "filelock",
        "jinja2",
        "matplotlib",
        "pluggy",
        "numpy",
        "pandas",
        "scikit-learn",
        "pillow",
    ),
    *("bokeh", "psutil", "pydantic", "pydicom", "rich", "typer", "nibabel", "SimpleITK"),
)


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of each package; ``None`` for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache  # reading the metadata of all packages takes a tenth of a second, and each run of a process asks for it
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tolerate_damaged_metadata() -> None:
    """Keep libraries from reading the entry points of all packages if one package's cannot be read.

    Pydantic and torch read them for plugins of their own when they are imported, so one damaged package would cost
    every command, among them the one that names the package.
    """
    try:
        metadata.entry_points()
    except Exception:  # whatever damaged files raise
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def processors() -> int:
    """Return how many processors this process may use, at least 1."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system
        return os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB
