"""Write a task for a user's own images or volumes, once everything about them has been checked."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from medmllm_plugins.cli.dataset_summary import describe
from medmllm_plugins.cli.own_data_declaration import NewTaskOptions, declare_own_data
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.plugins.manager import get_manager, reset
from medmllm_plugins.plugins.specs import is_identifier
from medmllm_plugins.plugins.task_files import read_task, read_yaml
from medmllm_plugins.prompts.task_names import declared_tasks
from medmllm_plugins.prompts.task_settings import read_settings
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.user_dirs import tasks_folder


def create_task(options: NewTaskOptions, log: Callable[[str], None]) -> Path:
    """Check a user's data, and return the YAML file of a task for them; nothing is written unless the set is sound.

    Raises:
        OptionError: the options contradict each other, or the name is taken.
        DataError: something is wrong with the data; one error with all faults.
    """
    target = _target_file(options)
    spec, notes = declare_own_data(options)
    for note in notes:
        log(f"chosen     {note}")
    log(f"reading    every {'volume' if spec.dimensions == 3 else 'image'} below {spec.folder} …")
    data = load_dataset(spec)
    for line in describe(data):
        log(line)
    for warning in data.warnings:
        log(f"warning    {warning}")
    if not data.select(("test",)):
        raise DataError(
            f"{options.name}: expected images in the test fold, which a task evaluates, got none. Correct the fold "
            "column, or give --fold none to have folds made."
        )
    text = task_text(spec)
    read_settings(spec.name, _metadata(spec))
    if target.exists() and not options.overwrite:  # another process may have written it meanwhile
        raise OptionError(f"{target} exists; give --overwrite to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, text)
    reset()  # so that this process finds the task too
    log(f"written    {target}")
    log(f"next       {_next_command(spec, target)}")
    log("           (pretrained=demo runs too, but that model only knows phantoms: its numbers mean nothing here)")
    return target


def _next_command(spec: DatasetSpec, target: Path) -> str:
    """Return the command that evaluates a published model on the new task; for CT volumes one that reads volumes."""
    is_ct = spec.dimensions == 3 and spec.options.get("unit") == "HU"
    model, checkpoint = ("medm_vl_ct", "ct-chest-3b") if is_ct else ("medm_vl", "2d-3b")
    task = shlex.quote(spec.name if target.parent.is_relative_to(tasks_folder()) else str(target))
    return (
        f"lmms-eval --model {model} --model_args pretrained={checkpoint} --batch_size 1 --output_path results "
        f"--tasks {task}"
    )


def task_text(spec: DatasetSpec) -> str:
    """Return the YAML file of a task with this data set, its declaration inside."""
    content = {"metadata": _metadata(spec)}
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return (
        f"task: {yaml.safe_dump(spec.name).splitlines()[0]}\n"
        "class: !function medmllm_plugins.host.tasks.ClassificationTask\n"
        f"output_type: generate_until\n{body}"
    )


def _metadata(spec: DatasetSpec) -> dict[str, Any]:
    dataset: dict[str, Any] = {"name": spec.name, "title": spec.title, "layout": spec.layout, "folder": spec.folder}
    dataset |= {"modality": spec.modality, "kind": spec.kind, "dimensions": spec.dimensions}
    dataset["classes"] = {label: list(synonyms) for label, synonyms in spec.classes.items()}
    if spec.positive is not None:
        dataset["positive"] = spec.positive
    dataset["options"] = dict(spec.options)
    return {"version": 1.0, "medmllm": {"protocol": "closed_set", "dataset": dataset}}


def _target_file(options: NewTaskOptions) -> Path:
    """Return the file to write, if the name is valid and free."""
    name = options.name
    if not is_identifier(name):
        raise OptionError(
            f"Expected the task's name to be lower-case letters, digits and underscores, not starting with an "
            f"underscore, got {name!r}."
        )
    folder = Path(os.path.abspath(Path(options.output).expanduser())) if options.output else tasks_folder()
    target = folder / f"{name}.yaml"
    owner = _owner_of(name)
    if owner is not None and owner.resolve() != target.resolve():
        raise OptionError(f"The name {name!r} is taken by the task in {owner}; choose another.")
    if target.exists():
        if not options.overwrite:
            raise OptionError(f"{target} exists; give --overwrite to replace it.")
        if read_task(target)[0] != name or "medmllm" not in (read_yaml(target).get("metadata") or {}):
            raise OptionError(f"{target} is no task that this command wrote; choose another name or --output.")
    return target


def _owner_of(name: str) -> Path | None:
    """Return the file of the task that has this name already, if there is one."""
    entry = get_manager().tasks().get(name)
    if entry is not None:
        return entry.path
    if name in declared_tasks():
        return declared_tasks()[name].path
    if name in dataset_specs():
        raise OptionError(f"A data set is called {name!r}; choose another name.")
    return _host_task(name)


def _host_task(name: str) -> Path | None:
    """Return the file of the host's own task of that name, which would hide ours; the host is not imported."""
    spec = importlib.util.find_spec("lmms_eval")
    pattern = re.compile(rb"^(task|group):[ \t]*[\"']?" + name.encode() + rb"[\"']?[ \t\r]*$", re.MULTILINE)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted((Path(location) / "tasks").rglob("*.yaml")):
            if pattern.search(path.read_bytes()):
                return path
    return None
