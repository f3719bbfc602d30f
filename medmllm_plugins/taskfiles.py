"""Task folders on disk: which files they hold, and what task or group each file declares."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any, Final, Literal

from medmllm_plugins.errors import PluginError, shown

DATASETS: Final = "datasets"
"""Folders of this name hold declarations of data sets, not tasks."""
MOST_FOLDERS: Final = 2000
"""Folders below one task folder: a folder with more, such as ``/``, is no folder of tasks."""


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Task files and ``datasets`` folders below ``folder``, each sorted.

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


@functools.cache
def _loader() -> Any:
    """A safe YAML loader to which ``!function a.b.c`` and any other tag is but text."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep=deep)
            except ValueError as error:  # such as a date with a 13th month; PyYAML gives no line for it
                raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def as_text(loader: Any, node: Any) -> str:
        return str(node.value) if isinstance(node, yaml.ScalarNode) else str(node.tag)

    Loader.add_constructor(None, as_text)
    return Loader


def read_yaml(path: Path) -> dict[str, Any]:
    """What a task's YAML file holds, tags such as ``!function`` as plain text.

    Raises:
        PluginError: the file is no UTF-8, no YAML, or holds no keys; the message names file and line.
        OSError: it cannot be read.
    """
    return _read(path)[0]


def read_task(path: Path) -> tuple[str, Literal["task", "group"]]:
    """Name and kind of the task or group that a YAML file declares.

    Raises:
        PluginError: the file is no UTF-8 or no YAML, or declares neither; the message names file and line.
        OSError: it cannot be read.
    """
    content, lines = _read(path)
    task, kind = content.get("task"), "task"
    if isinstance(task, list):
        task, kind = content.get("group"), "group"
    if not isinstance(task, str) or not task or re.search(r"[\s,]", task):
        found = f"got {kind}: {shown(task)}" if kind in content else "it has none"
        wanted = "`task: NAME`" if kind == "task" else "`group: NAME` beside a list of tasks"
        raise PluginError(
            f"{path}, line {lines.get(kind, lines.get('task', 1))}: expected {wanted}, the name without blanks and "
            f"commas, but {found}."
        )
    return task, "group" if kind == "group" else "task"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's keys and values, and the lines on which the keys stand."""
    import yaml

    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PluginError(f"{path}, line {line}: expected UTF-8, but found byte {data[error.start]:#04x}.") from error
    loader = None
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise PluginError(f"{path}, line {line}: expected YAML, but got {error.problem or error.context}.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PluginError(f"{path}, line {line}: expected YAML, but got {error.reason}.") from error
    except RecursionError as error:
        line = 1 if loader is None else loader.line + 1
        raise PluginError(f"{path}, line {line}: expected YAML, but it is nested too deep.") from error
    if not isinstance(content, dict):
        raise PluginError(
            f"{path}, line 1: expected keys and values, `task: NAME` among them, but got {shown(content)}."
        )
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    return content, lines
