"""Task folders on disk: which files they hold, and what task or group each file declares."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal

from medmllm_plugins.errors import PluginError, shown
from medmllm_plugins.utils.bounded_yaml import read_yaml_file

DATASETS: Final = "datasets"
"""Folders of this name hold declarations of data sets, not tasks."""
MOST_FOLDERS: Final = 2000
"""Folders below one task folder: a folder with more, such as ``/``, is no folder of tasks."""


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return task files and ``datasets`` folders below ``folder``, each sorted.

    Raises:
        OSError: a folder cannot be listed.
        PluginError: there are more than ``MOST_FOLDERS`` folders.
    """

    def give_up(error: OSError) -> None:
        raise error

    files: list[Path] = []
    datasets: list[Path] = []
    for number, (root, folders, names) in enumerate(os.walk(folder, onerror=give_up)):
        if number >= MOST_FOLDERS:
            raise PluginError(f"{folder}: expected a folder of tasks, got more than {MOST_FOLDERS} folders below it.")
        here = Path(root)
        if DATASETS in folders:
            datasets.append(here / DATASETS)
        folders[:] = [name for name in folders if name not in (DATASETS, "__pycache__") and not name.startswith(".")]
        files.extend(here / name for name in names if name.endswith(".yaml") and not name.startswith(("_", ".")))
    return sorted(files), sorted(datasets)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read what a task's YAML file holds, tags such as ``!function`` as plain text.

    Raises:
        PluginError: the file is no UTF-8, no YAML, or holds no keys; the message names file and line.
        OSError: it cannot be read.
    """
    return _read(path)[0]


def read_task(path: Path) -> tuple[str, Literal["task", "group"]]:
    """Return name and kind of the task or group that a YAML file declares.

    Raises:
        PluginError: the file is no UTF-8 or no YAML, or declares neither; the message names file and line.
        OSError: it cannot be read.
    """
    content, lines = _read(path)
    task, kind = content.get("task"), "task"
    if isinstance(task, list):
        task, kind = content.get("group"), "group"
    if not isinstance(task, str) or not task or re.search(r"[\s,]", task):
        got = f"{kind}: {shown(task)}" if kind in content else "none"
        wanted = "`task: NAME`" if kind == "task" else "`group: NAME` beside a list of tasks"
        raise PluginError(
            f"{path}, line {lines.get(kind, lines.get('task', 1))}: expected {wanted}, the name without blanks and "
            f"commas, got {got}."
        )
    return task, "group" if kind == "group" else "task"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a file's keys and values, and the lines on which the keys stand."""
    file = read_yaml_file(path, error=PluginError, any_tag=True)
    if not isinstance(file.content, dict):
        raise PluginError(
            f"{path}, line 1: expected keys and values, `task: NAME` among them, got {shown(file.content)}."
        )
    return file.content, file.lines
