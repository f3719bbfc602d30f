"""Plugins registered in process, and what the host is expected to know of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.tasks import TaskManager

import medmllm_plugins
from medmllm_plugins.plugins import builtin
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import ModelSpec, TaskFolder

PACKAGE = Path(medmllm_plugins.__file__).parent
PREFIXES = ("med_attr", "med_cls", "med_patch", "med_probe")
FILES = {f"{prefix}{ending}" for prefix in PREFIXES for ending in ("", "_medmnist")}
DATASETS = [path.stem for path in (PACKAGE / "tasks" / "datasets").glob("*.yaml")]
OURS = FILES | {
    f"{prefix}_{dataset}{ending}"
    for prefix in PREFIXES
    for dataset in DATASETS
    for ending in ("", "_letter", "_open")
    if not (ending and dataset in ("chestmnist", "chestxray14", "ct_rate"))  # findings are asked yes or no
}
MANIFESTS = [
    ModelManifest(model_id=spec.name, chat_class_path=f"medmllm_plugins.host.registered_models.{spec.name}")
    for spec in builtin.medmllm_models()
]
MEDM_VL = MANIFESTS[0]
NAMES = [manifest.model_id for manifest in MANIFESTS]


class Plugin:
    """A plugin registered in process, with the models and the task folder it is given."""

    def __init__(self, *models: ModelSpec, tasks: Path | None = None) -> None:
        self.models = models
        self.tasks = tasks

    @hookimpl
    def medmllm_models(self) -> list[ModelSpec]:
        return list(self.models)

    @hookimpl
    def medmllm_tasks(self) -> list[TaskFolder]:
        return [] if self.tasks is None else [TaskFolder(path=str(self.tasks))]


class Broken(Plugin):
    @hookimpl
    def medmllm_models(self) -> list[ModelSpec]:
        raise RuntimeError("this plugin is broken")


def spec(name: str, **changes: Any) -> ModelSpec:
    return ModelSpec(**{"name": name, "summary": "A model.", "loader": "nowhere.module:load", **changes})


def plain_index(**settings: Any) -> TaskManager:
    """A task manager without the host's own tasks, which take seconds to read."""
    return TaskManager(include_defaults=False, **settings)


def failing(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        raise error

    return call
