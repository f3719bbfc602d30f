"""Folders outside the package: where data, the user's own tasks and what is remembered between runs are."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "MEDMLLM_DATA"
"""Environment variable with the folder that holds the data sets' folders."""
TASKS_VARIABLE = "MEDMLLM_TASKS"
"""Environment variable with the folder of the user's own tasks."""
CACHE_VARIABLE = "MEDMLLM_CACHE"
"""Environment variable with the folder for checks of large data sets; set but empty, nothing is remembered."""


def tasks_folder() -> Path:
    """Return the folder of the user's tasks: ``MEDMLLM_TASKS``, else ``medmllm/tasks`` in the config folder."""
    named = os.environ.get(TASKS_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "medmllm" / "tasks"


def cache_folder() -> Path | None:
    """Return the cache folder: ``MEDMLLM_CACHE``, else ``medmllm`` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named is not None:
        return Path(named).expanduser().absolute() if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medmllm"
