"""Commands that the page suggests, filled in with a run's model and task, ready to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import CLASSIFY, SUFFIXES, answering_task, inspection_task
from medmllm_plugins.prompts.task_settings import AFTERWARDS
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.results.file_names import REPAIR_FOLDERS, file_stem
from medmllm_plugins.results.run_reader import RunFolder

MODEL_ARGUMENTS: Final = ("pretrained", "peft", "load_in", "dtype", "device_map")
"""Arguments of a model that a command repeats: those that decide which weights are loaded, and how. Others may be
secrets or belong to another machine."""
_NOT_ASKED: Final = (*AFTERWARDS, "pool", "random_encoder", "folds", "order", "image")
"""Arguments of a task that a command leaves out: analyses, folds and controls. A wording or a view stays."""


def asking_task(name: str) -> str:
    """Return the task that only asks the question of a task, such as ``med_cls_x`` for ``med_probe_x:n=16``."""
    base, *arguments = name.split(":")
    kept = [argument for argument in arguments if _is_question(*argument.partition("=")[::2])]
    return ":".join([answering_task(base), *kept])


def _is_question(name: str, value: str) -> bool:
    return name not in _NOT_ASKED and (name, value) != ("paraphrase", "all")


def can_be_repaired(run: RunFolder) -> bool:
    """Return whether ``medmllm repair`` takes a run's model: one that this package or a plugin loads, not repaired yet.

    The model of a plugin that is not installed here is taken to be such a model, since reports are read on other
    machines.
    """
    name = str(run.command.get("model") or "")
    spec = get_manager().models().get(name)
    wrapped = spec is not None and spec.wrapper is not None
    return bool(name) and "pretrained" in _arguments(run) and not wrapped and not run.model.repair


def repair_command(result: TaskResult, candidates: Iterable[str] = ()) -> str:
    """Return the command that tries repairs of a result's model on its task; empty if it cannot be repaired."""
    if not can_be_repaired(result.run):
        return ""
    words = ["medmllm", "repair", asking_task(result.task.name), *_model_words(result.run)]
    names = list(candidates)
    return shlex.join([*words, *(["--candidates", *names] if names else [])])


def probe_command(result: TaskResult) -> str:
    """Return the command that probes a result's model; empty if the run does not name its model."""
    base, *arguments = asking_task(result.task.name).split(":")
    return _evaluation(result.run, [":".join([inspection_task(base, "probe"), *arguments])])


def probe_repaired_command(result: TaskResult, folder: str) -> str:
    """Return the command that probes a model with a repair, the unrepaired model being its twin.

    Args:
        result: result of the run of ``medmllm repair``.
        folder: folder of the repair, below that of all repairs of the study.
    """
    arguments = _arguments(result.run)
    stem, fingerprint = file_stem(result.task.name), (result.run.model.fingerprint or "")[:8]
    path = PurePosixPath(REPAIR_FOLDERS) / f"{stem}-{fingerprint}" / folder
    if not folder or not fingerprint or "pretrained" not in arguments:
        return ""
    base, *rest = asking_task(result.task.name).split(":")
    task = ":".join([inspection_task(base, "probe"), *rest])
    added = {"repair": str(path)} if folder == "soft_prompt" else {"repair": str(path), "twin": arguments["pretrained"]}
    return _evaluation(result.run, [task], added)


def evaluate_command(result: TaskResult, *arguments: str) -> str:
    """Return the command that asks a model about all documents; once more for each argument of the task, if any."""
    task = asking_task(result.task.name)
    return _evaluation(result.run, [f"{task}:{argument}" for argument in arguments] or [task])


def letter_command(result: TaskResult) -> str:
    """Return the command that asks for a letter; empty if the task does already, or has no such form."""
    base = asking_task(result.task.name).partition(":")[0]
    protocol = result.task.settings.protocol
    suffix = next((suffix for suffix, name in SUFFIXES.items() if name == protocol), "")
    if result.multilabel or protocol == "letter" or not base.startswith(CLASSIFY):
        return ""
    return _evaluation(result.run, [f"{base.removesuffix(suffix)}_letter"])


def baseline_command(result: TaskResult, method: str = "") -> str:
    """Return the command that trains a reference classifier for a task."""
    words = ["medmllm", "baseline", asking_task(result.task.name)]
    return shlex.join([*words, *(["--method", method] if method else [])])


def diagnose_command(run: RunFolder) -> str:
    """Return the command that repeats the diagnosis of a run, whose folder is named as for this report."""
    return shlex.join(["medmllm", "diagnose", str(run.folder)])


def _evaluation(run: RunFolder, tasks: list[str], added: dict[str, str] | None = None) -> str:
    if not run.command.get("model"):
        return ""
    return shlex.join(["lmms-eval", *_model_words(run, added), "--tasks", ",".join(tasks)])


def _model_words(run: RunFolder, added: dict[str, str] | None = None) -> list[str]:
    arguments = _arguments(run) | (added or {})
    joined = ",".join(f"{name}={value}" for name, value in arguments.items())
    return ["--model", str(run.command["model"]), *(["--model_args", joined] if joined else [])]


def _arguments(run: RunFolder) -> dict[str, str]:
    parts = str(run.command.get("model_args") or "").split(",")
    pairs = dict(part.partition("=")[::2] for part in parts if "=" in part)
    return {name: pairs[name] for name in MODEL_ARGUMENTS if pairs.get(name)}
