"""What may stand behind ``--tasks``, made known to the host's task index.

The host knows task names that stand in YAML files of its own folders. Here it learns those of plugins, those that
data-set declarations give, names with arguments, and paths of YAML files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from medmllm_plugins.errors import OptionError
from medmllm_plugins.manager import get_manager
from medmllm_plugins.taskfiles import read_task

_CONFIG = "medmllm_config"
_BASE = "medmllm_base"
_PURPOSE = "medmllm_purpose"
_YAML = (".yaml", ".yml")

Index = dict[str, dict[str, Any]]


def add_tasks(index: Index) -> None:
    """Add the tasks of all plugins and of all declared data sets to a host task index, in place.

    A name that the index holds already stays what it was: built-in before ``--include_path`` before plugin, and of
    ours a YAML file before a declaration. Failures of single plugins or files are warnings; under
    ``MEDMLLM_STRICT=1`` they raise ``PluginError``.
    """
    manager = get_manager()
    entries = manager.tasks()
    for failure in manager.failures:
        logger.warning(f"medmllm-plugins: {failure}")
    for name, entry in entries.items():
        if name in index:
            if Path(str(index[name].get("yaml_path"))) != entry.path:
                logger.warning(f"medmllm-plugins: task {name!r} of {entry.plugin} is hidden by {index[name]}.")
            continue
        # "task" also for our class-based tasks: the host lists and loads these alike, while "python_task" entries
        # are left out of its listings.
        index[name] = {"type": entry.kind, "yaml_path": str(entry.path)}
        if entry.kind == "group":
            index[name]["task"] = -1
    # Reads all declarations, which importing us must not.
    from medmllm_plugins.questions.names import declared_tasks, derived_tasks

    for name, task in declared_tasks().items():
        if name in index:
            logger.warning(f"medmllm-plugins: task {name!r} of data set {task.dataset} is hidden by {index[name]}.")
            continue
        asked = {"dataset": task.dataset, "protocol": task.protocol}
        index[name] = {"type": "task", "yaml_path": str(task.path), _CONFIG: asked, _PURPOSE: task.purpose}
    for name, derived in derived_tasks().items():
        if name not in index and index.get(derived.base, {}).get("yaml_path") == str(derived.path):
            told = {_BASE: derived.base, _CONFIG: {}, _PURPOSE: derived.purpose}
            index[name] = {"type": "task", "yaml_path": str(derived.path), **told}


def is_ours(entry: Mapping[str, Any]) -> bool:
    """Return whether an index entry is a task of this package's, or a group that a file of ours lists."""
    if _CONFIG in entry:
        return True
    try:
        return b"medmllm" in Path(str(entry["yaml_path"])).read_bytes()
    except (KeyError, OSError):
        return False


def resolve(index: Index, name: str) -> str:
    """See to it that the index holds what a user wrote behind ``--tasks``.

    Args:
        index: the host's task index; an entry is added where needed.
        name: a task's name, with or without arguments, or the path of a task's YAML file.

    Returns:
        The name under which the index has it; ``name`` itself where this package has nothing to add.

    Raises:
        OptionError: the arguments are wrong, or the task takes none.
        PluginError: the YAML file declares no task.
    """
    if name in index:
        return name
    if name.endswith(_YAML) and Path(name).is_file():
        path = Path(name).absolute()
        task, kind = read_task(path)
        if task not in index:
            index[task] = {"type": kind, "yaml_path": str(path), **({"task": -1} if kind == "group" else {})}
        elif Path(str(index[task]["yaml_path"])).resolve() != path.resolve():
            raise OptionError(
                f"{path} declares the task {task!r}, but {index[task]['yaml_path']} does too; give it another name."
            )
        return task
    base, colon, _ = name.partition(":")
    if not colon or base not in index:
        return name
    from medmllm_plugins.questions.names import split_name

    _, arguments = split_name(name)
    if index[base]["type"] != "task":
        raise OptionError(f"{base} is a group: expected arguments behind the names of tasks, found {name!r}.")
    index[name] = {_BASE: base, **index[base], _CONFIG: {**index[base].get(_CONFIG, {}), **arguments}}
    return name


def config(entry: Mapping[str, Any], name: str, load: Callable[[str], Any]) -> dict[str, Any] | None:
    """The configuration of an index entry that was added here; ``None`` for any other.

    Args:
        entry: the index entry.
        name: its name.
        load: reads the YAML file of a task by its name, as the host does.
    """
    if _CONFIG not in entry:
        return None
    asked = dict(entry[_CONFIG])
    if "dataset" in asked:
        return {
            "task": name,
            "class": _task_class(str(entry.get(_PURPOSE))),
            "output_type": "generate_until",
            "metadata": {"version": 1.0, "medmllm": asked},
        }
    found = dict(load(entry[_BASE]))
    metadata = found.get("metadata")
    if not isinstance(metadata, Mapping) or "medmllm" not in metadata:
        raise OptionError(f"{entry[_BASE]} is no task of medmllm-plugins and takes no arguments; found {name!r}.")
    looks = {"class": _task_class(str(entry[_PURPOSE]))} if _PURPOSE in entry else {}
    return {**found, **looks, "task": name, "metadata": {**metadata, "medmllm": {**metadata["medmllm"], **asked}}}


def _task_class(purpose: str) -> type[Any]:
    """The class of a declared task; what probes or explains is imported only where it is used."""
    if purpose == "probe":
        from medmllm_plugins.host.probing import ProbingTask

        return ProbingTask
    if purpose == "attribute":
        from medmllm_plugins.host.attributing import AttributingTask

        return AttributingTask
    from medmllm_plugins.host.tasks import ClassificationTask

    return ClassificationTask
