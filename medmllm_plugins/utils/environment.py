"""Which versions of the packages that move the numbers are installed here."""

from __future__ import annotations

import platform
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
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
