"""This package's own models, probes, attribution methods and tasks, declared by the hooks that every plugin uses.

The declarations are in ``builtin.json``, their keys the fields of the classes in :mod:`medmllm_plugins.plugins.specs`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, PromptStyle, TaskFolder


@functools.cache
def _declarations() -> dict[str, list[dict[str, Any]]]:
    declarations: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return declarations


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """Return the medical models of "Lost in the Hype" (arXiv:2604.08333), MedM-VL, and their families."""
    return [
        ModelSpec(**{**fields, "prompt_style": PromptStyle(**fields.get("prompt_style", {}))})
        for fields in _declarations()["models"]
    ]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """Return the probes of ``medmllm diagnose --protocol NAME``."""
    return [ProbeSpec(**fields) for fields in _declarations()["probes"]]


@hookimpl
def medmllm_attributions() -> list[AttributionSpec]:
    """Return Captum's methods at layers, pixels and words, and attention rollout to compare them with."""
    return [AttributionSpec(**fields) for fields in _declarations()["attributions"]]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """Return the task YAML files and data-set declarations of ``tasks/``."""
    return [TaskFolder(path="medmllm_plugins:tasks")]
