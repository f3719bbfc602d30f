"""Which versions of the packages that move the numbers are installed here."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = (
    "medmllm-plugins",
    "lmms-eval",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "datasets",
    "captum",
    "filelock",
    "jinja2",
    "matplotlib",
    "pluggy",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
    "psutil",
    "pydantic",
    "pydicom",
    "rich",
    "typer",
    "nibabel",
    "SimpleITK",
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
