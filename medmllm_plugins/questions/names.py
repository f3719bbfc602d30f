"""Names of tasks: those that data-set declarations give, and the arguments that may stand behind a name.

A declared data set ``X`` gives the tasks ``med_cls_X``, ``med_cls_X_letter`` and ``med_cls_X_open`` without a YAML file
of its own, and the same with ``med_probe_``, which probe a model's stages, and with ``med_attr_``, which explain its
answers. Every task of this package takes arguments behind its name: ``med_cls_X:order=varied``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.answers.protocols import Protocol
from medmllm_plugins.data.catalogue import declarations
from medmllm_plugins.errors import OptionError
from medmllm_plugins.manager import get_manager
from medmllm_plugins.questions.settings import AFTERWARDS, ARGUMENTS, Purpose, Settings, read_settings
from medmllm_plugins.taskfiles import read_yaml

CLASSIFY: Final = "med_cls_"
PREFIXES: Final[Mapping[str, Purpose]] = {CLASSIFY: "classify", "med_probe_": "probe", "med_attr_": "attribute"}
"""Beginning of a task's name to what it is for."""
SUFFIXES: Final[Mapping[str, Protocol]] = {"": "closed_set", "_letter": "letter", "_open": "open"}
"""Ending of a task's name to its protocol."""


@dataclass(frozen=True, slots=True)
class DeclaredTask:
    """A task that the declaration of a data set gives.

    Attributes:
        dataset: the data set's name.
        protocol: how its classes are asked for.
        path: the declaration's file.
        purpose: whether it asks only, probes a model's stages, or explains answers.
    """

    dataset: str
    protocol: Protocol
    path: Path
    purpose: Purpose = "classify"


def declared_tasks() -> dict[str, DeclaredTask]:
    """The tasks that data-set declarations give, by name."""
    found: dict[str, DeclaredTask] = {}
    for dataset, declaration in declarations().items():
        for suffix, protocol in SUFFIXES.items():
            if suffix and declaration.spec.kind == "multilabel":  # asked one yes/no question a finding
                continue
            for prefix, purpose in PREFIXES.items():
                task = DeclaredTask(dataset, protocol, declaration.path, purpose)
                found[f"{prefix}{dataset}{suffix}"] = task
    return found


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
            raise OptionError(
                f"Task {name!r}: expected arguments like `order=varied`, each once, with a name among "
                f"{list(ARGUMENTS)}, found {part!r}."
            )
        arguments[key] = value
    return base, arguments


def answering_name(name: str) -> str:
    """A task's name without the arguments that decide nothing about its answers."""
    base, *parts = name.split(":")
    return ":".join([base, *(part for part in parts if part.partition("=")[0] not in AFTERWARDS)])


def task_settings(name: str) -> Settings:
    """The settings of a task by its name, with or without arguments, as an evaluation would have them.

    Raises:
        OptionError: there is no such task, or it is not one of this package's.
        DataError: its data set's declaration is wrong.
    """
    base, arguments = split_name(name)
    task = declared_tasks().get(base)
    if task is not None:
        asked = {"dataset": task.dataset, "protocol": task.protocol, **arguments}
        return read_settings(name, {"medmllm": asked}, purpose=task.purpose)
    entry = get_manager().tasks().get(base)
    if entry is None or entry.kind != "task":
        others = (name for name, one in get_manager().tasks().items() if one.kind == "task")
        known = sorted([*declared_tasks(), *others])
        raise OptionError(f"Expected the name of a task, one of {known}, found {base!r}.")
    metadata: Any = read_yaml(entry.path).get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("medmllm"), Mapping):
        raise OptionError(f"{base} is no task of medmllm-plugins: {entry.path} has no `metadata: {{medmllm: …}}`.")
    return read_settings(name, {"medmllm": {**metadata["medmllm"], **arguments}})
