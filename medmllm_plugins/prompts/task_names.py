"""Names of tasks: those that data-set declarations give, and the arguments that may follow a name.

A declared data set ``X`` gives the tasks ``med_cls_X``, ``med_cls_X_letter`` and ``med_cls_X_open`` without a YAML file
of its own. The same names with ``med_probe_`` probe a model's stages, with ``med_attr_`` explain its answers, and with
``med_patch_`` put states of another model in. A task ``T`` that a YAML file gives and that asks only, as those of
``medmllm task new``, gives ``med_probe_T``, ``med_attr_T`` and ``med_patch_T`` likewise. Every task of this package
takes arguments behind its name: ``med_cls_X:order=varied``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.data.loading.catalogue import declarations
from medmllm_plugins.errors import OptionError, PluginError, shown
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.task_files import read_yaml
from medmllm_plugins.prompts.protocols import Protocol
from medmllm_plugins.prompts.task_settings import AFTERWARDS, ARGUMENTS, Purpose, TaskSettings, read_settings
from medmllm_plugins.utils.suggestions import did_you_mean

CLASSIFY: Final = "med_cls_"
PREFIXES: Final[Mapping[str, Purpose]] = {
    CLASSIFY: "classify",
    "med_probe_": "probe",
    "med_attr_": "attribute",
    "med_patch_": "patch",
}
"""Beginning of a task's name to what it is for."""
SUFFIXES: Final[Mapping[str, Protocol]] = {"": "closed_set", "_letter": "letter", "_open": "open"}
"""Ending of a task's name to its protocol."""


@dataclass(frozen=True, slots=True)
class DeclaredTask:
    """A task that the declaration of a data set, in the file ``path``, gives."""

    dataset: str
    protocol: Protocol
    path: Path
    purpose: Purpose = "classify"


def declared_tasks() -> dict[str, DeclaredTask]:
    """Return the tasks that data-set declarations give, by name."""
    tasks: dict[str, DeclaredTask] = {}
    for dataset, declaration in declarations().items():
        for suffix, protocol in SUFFIXES.items():
            if suffix and declaration.spec.kind == "multilabel":  # asked one yes/no question a finding
                continue
            for prefix, purpose in PREFIXES.items():
                task = DeclaredTask(dataset, protocol, declaration.path, purpose)
                tasks[f"{prefix}{dataset}{suffix}"] = task
    return tasks


@dataclass(frozen=True, slots=True)
class DerivedTask:
    """A probing, attributing or patching task, derived from the task ``base`` of a YAML file that only asks."""

    base: str
    path: Path
    purpose: Purpose


def derived_tasks() -> dict[str, DerivedTask]:
    """Return by name what looks inside a model, for YAML files that only ask; declared tasks have precedence."""
    declared, entries = declared_tasks(), get_manager().tasks()
    tasks: dict[str, DerivedTask] = {}
    for base, entry in entries.items():
        if entry.kind != "task" or not _asks_only(entry.path):
            continue
        for prefix, purpose in PREFIXES.items():
            name = f"{prefix}{base.removeprefix(CLASSIFY)}"
            if prefix != CLASSIFY and name not in declared and name not in entries:
                tasks[name] = DerivedTask(base, entry.path, purpose)
    return tasks


def _asks_only(path: Path) -> bool:
    """Return whether a task's file is of this package's plain class, with a data set."""
    try:
        content = read_yaml(path)
    except (PluginError, OSError):  # damaged since it was listed; loading the task reports it
        return False
    return str(content.get("class")).endswith(".ClassificationTask") and settings_of(content) is not None


def settings_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings in a task's file; ``None`` if it is not a task of this package."""
    metadata = content.get("metadata")
    settings = metadata.get("medmllm") if isinstance(metadata, Mapping) else None
    return settings if isinstance(settings, Mapping) else None


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME:argument=value:…`` into the name and its arguments.

    Raises:
        OptionError: an argument is unknown, is given twice or has no value.
    """
    base, *parts = name.split(":")
    arguments: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in ARGUMENTS or not equals or not value or key in arguments:
            hint = did_you_mean(key, ARGUMENTS) if key not in ARGUMENTS else ""
            raise OptionError(
                f"Task {shown(name)}: expected arguments like `order=varied`, each once, with a name among "
                f"{list(ARGUMENTS)}, got {shown(part)}.{f' {hint}' if hint else ''}"
            )
        arguments[key] = value
    return base, arguments


def answering_name(name: str) -> str:
    """Return a task's name without the arguments that do not affect its answers."""
    base, *parts = name.split(":")
    return ":".join([base, *(part for part in parts if part.partition("=")[0] not in AFTERWARDS)])


def task_names() -> list[str]:
    """Return the names of all tasks and groups of this package and plugins, sorted."""
    return sorted({*declared_tasks(), *derived_tasks(), *get_manager().tasks()})


def no_such_task(base: str) -> str:
    """Return the message about a task's name that does not exist, without arguments; it asks what was meant."""
    entry = get_manager().tasks().get(base)
    if entry is not None and entry.kind == "group":
        content = read_yaml(entry.path)
        members = " ".join(map(str, members)) if isinstance(members := content.get("task"), list) else "its tasks"
        return f"Expected the name of a task, got the group {shown(base)}. Name its tasks: {members}."
    hint = did_you_mean(base, task_names()) or "`medmllm task list` lists all."
    return f"Expected the name of a task, got {shown(base)}. {hint}"


def answering_task(name: str) -> str:
    """Return the task that only asks, for one that looks inside the model; of any other name the name itself.

    The name is without arguments. It need not be known here, since reports are read on other machines.
    """
    derived = derived_tasks().get(name)
    if derived is not None:
        return derived.base
    for prefix, purpose in PREFIXES.items():
        if purpose != "classify" and name.startswith(prefix):
            return f"{CLASSIFY}{name.removeprefix(prefix)}"
    return name


def inspection_task(name: str, purpose: Purpose) -> str:
    """Return the task of another purpose that asks what a task asks, both without arguments."""
    base = answering_task(name)
    prefix = next(prefix for prefix, its_purpose in PREFIXES.items() if its_purpose == purpose)
    return f"{prefix}{base.removeprefix(CLASSIFY)}"


def probing_command(command: Mapping[str, Any], task: str) -> str:
    """Return the command that probes the model of a run; empty if the run does not name its model.

    ``command`` is the run's command line by its manifest, ``task`` one of its tasks, with or without arguments. Of the
    model's arguments the checkpoint alone is repeated, since others may be secrets.
    """
    if not command.get("model"):
        return ""
    words = ["lmms-eval", "--model", str(command["model"])]
    for argument in str(command.get("model_args") or "").split(","):
        if argument.startswith("pretrained="):
            words += ["--model_args", argument]
    return shlex.join([*words, "--tasks", inspection_task(task.partition(":")[0], "probe")])


def task_settings(name: str) -> TaskSettings:
    """Return the settings of a task by its name, with or without arguments, as an evaluation would have them.

    Raises:
        OptionError: there is no such task, or it is not one of this package's.
        DataError: its data set's declaration is wrong.
    """
    base, arguments = split_name(name)
    task = declared_tasks().get(base)
    if task is not None:
        settings = {"dataset": task.dataset, "protocol": task.protocol, **arguments}
        return read_settings(name, {"medmllm": settings}, purpose=task.purpose)
    derived = derived_tasks()
    purpose = derived[base].purpose if base in derived else "classify"
    entry = get_manager().tasks().get(derived[base].base if base in derived else base)
    if entry is None or entry.kind != "task":
        raise OptionError(no_such_task(base))
    values = settings_of(read_yaml(entry.path))
    if values is None:
        raise OptionError(f"{base} is no task of medmllm-plugins: {entry.path} has no `metadata: {{medmllm: …}}`.")
    return read_settings(name, {"medmllm": {**values, **arguments}}, purpose=purpose)
