"""This package's own models and tasks, brought in by the hooks that every plugin uses."""

from __future__ import annotations

from medmllm_plugins.hookspecs import hookimpl
from medmllm_plugins.specs import ModelSpec, TaskFolder


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """MedM-VL."""
    return [
        ModelSpec(
            name="medm_vl",
            summary="MedM-VL for 2D images: SigLIP vision tower, MLP connector, Qwen2.5.",
            loader="medmllm_plugins.models.medm_vl:load",
            sizes={"demo": "embedded in this package", "2d-3b": "shiym2000/MedM-VL-2D-3B-en"},
            licence="as stated on each checkpoint's model card; the embedded demo is Apache-2.0",
            citation="Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025).",
        )
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """The task YAML files and data-set declarations of ``tasks/``."""
    return [TaskFolder(path="medmllm_plugins:tasks")]
