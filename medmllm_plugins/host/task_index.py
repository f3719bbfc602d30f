"""Add what ``--tasks`` may name to the host's task index.

The host knows the tasks in YAML files of its own folders. This module adds those of plugins, those that data-set
declarations give, names with arguments, and paths of YAML files.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from loguru import logger

from medmllm_plugins.errors import DataError, MedMLLMError, OptionError, PluginError, one_line, shown
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.task_files import read_task, read_yaml
from medmllm_plugins.utils.suggestions import did_you_mean

_CONFIG = "medmllm_config"
_BASE = "medmllm_base"
_PURPOSE = "medmllm_purpose"
_YAML = (".yaml", ".yml")
_CLASSES = {
    "classify": ("tasks", "ClassificationTask"),
    "probe": ("probe_tasks", "ProbingTask"),
    "attribute": ("attribution_tasks", "AttributingTask"),
    "patch": ("patch_tasks", "PatchingTask"),
}
_DEEPEST = 5
"""How deep groups in groups are followed; a group may hold itself."""

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
    # A fault in one kind of tasks must not cost the others.
    for add in (_add_declared, _add_derived):
        try:
            add(index)
        except PluginError:
            raise  # wanted by MEDMLLM_STRICT=1
        except Exception as error:
            logger.warning(f"medmllm-plugins: some tasks are missing: {one_line(error)}")


def _add_declared(index: Index) -> None:
    """Add the tasks of data-set declarations; reading these is what importing this module must not."""
    from medmllm_plugins.prompts.task_names import declared_tasks

    for name, task in declared_tasks().items():
        if name in index:
            logger.warning(f"medmllm-plugins: task {name!r} of data set {task.dataset} is hidden by {index[name]}.")
            continue
        settings = {"dataset": task.dataset, "protocol": task.protocol}
        index[name] = {"type": "task", "yaml_path": str(task.path), _CONFIG: settings, _PURPOSE: task.purpose}


def _add_derived(index: Index) -> None:
    """Add the tasks that look inside the model, for the YAML files that only ask."""
    from medmllm_plugins.prompts.task_names import derived_tasks

    for name, derived in derived_tasks().items():
        if name not in index and index.get(derived.base, {}).get("yaml_path") == str(derived.path):
            entry = {_BASE: derived.base, _CONFIG: {}, _PURPOSE: derived.purpose}
            index[name] = {"type": "task", "yaml_path": str(derived.path), **entry}


def is_ours(entry: Mapping[str, Any]) -> bool:
    """Return whether an index entry is a task of this package's, or a group that a file of ours lists."""
    if _CONFIG in entry:
        return True
    try:
        return b"medmllm" in Path(str(entry["yaml_path"])).read_bytes()
    except (KeyError, OSError):
        return False


def resolve(index: Index, name: str) -> str:
    """Make the index hold what a user wrote after ``--tasks``: a task's name, also with arguments, or a YAML file.

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
    from medmllm_plugins.prompts.task_names import split_name

    _, arguments = split_name(name)
    if index[base]["type"] != "task":
        raise OptionError(
            f"{base} is a group: expected arguments after the names of tasks, got {name!r}. Name its tasks."
        )
    index[name] = {_BASE: base, **index[base], _CONFIG: {**index[base].get(_CONFIG, {}), **arguments}}
    return name


def hint(index: Index, name: str) -> str:
    """Return a suggestion for a name that the index does not hold; empty if no name is similar."""
    if glob.has_magic(name):  # a pattern may match nothing
        return ""
    base, _, arguments = name.partition(":")
    question = did_you_mean(base, index)
    if arguments and base not in index and question:
        question += f" The part behind it, {shown(':' + arguments)}, stays as it is."
    return f"There is no task {shown(base)}. {question}" if question else ""


def check_data(index: Index, tasks: Sequence[str]) -> None:
    """Check that the data sets of several tasks are on this machine, and name all that are missing in one error.

    The host loads one task after the other and stops at the first without data. Faults of a single task, or of data
    that are there, are reported when it is loaded.

    Raises:
        DataError: folders are missing.
    """
    from medmllm_plugins.data.loading.dataset_folder import missing_folder
    from medmllm_plugins.prompts.task_names import task_settings

    names = list(dict.fromkeys(member for task in tasks for member in _members(index, task, 0)))
    missing: dict[str, str] = {}
    there: list[str] = []
    for name in names:
        try:
            spec = task_settings(name).dataset
        except MedMLLMError:
            continue
        why = missing_folder(spec)
        if why:
            missing[spec.name] = why
        else:
            there.append(name)
    if not missing or len(names) < 2:
        return
    noun = "data set is" if len(missing) == 1 else "data sets are"
    lines = "\n".join(f"  {why}" for why in missing.values())
    rest = f"\nOr evaluate what is there: --tasks {','.join(there)}" if there else ""
    try_demo = "" if there else "\nTo try the tools without data: --tasks med_cls_demo"
    raise DataError(f"{len(missing)} {noun} missing:\n{lines}{rest}{try_demo}")


def _members(index: Index, name: str, depth: int) -> list[str]:
    """Return the tasks of a group and of the groups in it; for a task, its own name."""
    entry = index.get(name, {})
    if entry.get("type") != "group" or depth > _DEEPEST:
        return [name]
    try:
        members = read_yaml(Path(str(entry.get("yaml_path")))).get("task")
    except (PluginError, OSError):  # a group of the host's own, or without a file; loading it reports the fault
        return []
    listed = members if isinstance(members, list) else []
    return [task for member in listed if isinstance(member, str) for task in _members(index, member, depth + 1)]


def config(entry: Mapping[str, Any], name: str, load: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return the configuration of an index entry that was added here; ``None`` for any other.

    ``load`` reads the YAML file of a task by its name, as the host does.
    """
    if _CONFIG not in entry:
        return None
    settings = dict(entry[_CONFIG])
    if "dataset" in settings:
        return {
            "task": name,
            "class": _task_class(entry.get(_PURPOSE, "classify")),
            "output_type": "generate_until",
            "metadata": {"version": 1.0, "medmllm": settings},
        }
    base = dict(load(entry[_BASE]))
    metadata = base.get("metadata")
    if not isinstance(metadata, Mapping) or "medmllm" not in metadata:
        raise OptionError(f"{entry[_BASE]} is no task of medmllm-plugins and takes no arguments, got {name!r}.")
    purpose = {"class": _task_class(entry[_PURPOSE])} if _PURPOSE in entry else {}
    return {**base, **purpose, "task": name, "metadata": {**metadata, "medmllm": {**metadata["medmllm"], **settings}}}


def _task_class(purpose: str) -> type[Any]:
    """Return the class of a declared task, imported only now that it is used."""
    module, name = _CLASSES[purpose]
    task_class: type[Any] = getattr(import_module(f"medmllm_plugins.host.{module}"), name)
    return task_class
