"""The hooks a plugin may implement; every one is optional, takes no arguments and returns plain declarations.

A plugin is a module (or any object) named by an entry point of the group ``medmllm_plugins``. It marks its
implementations with ``hookimpl``; this package's own models and tasks use the same hooks
(:mod:`medmllm_plugins.plugins.builtin`). docs/plugins.md has the stability policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pluggy

from medmllm_plugins.plugins.specs import AttributionSpec, InterventionSpec, ModelSpec, ProbeSpec, TaskFolder

PROJECT: Final = "medmllm_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def medmllm_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Return models for ``lmms-eval --model NAME``."""


@hookspec
def medmllm_tasks() -> Iterable[TaskFolder]:  # type: ignore[empty-body]
    """Return folders of task YAML files for ``lmms-eval --tasks NAME``, with data-set declarations in ``datasets/``."""


@hookspec
def medmllm_probes() -> Iterable[ProbeSpec]:  # type: ignore[empty-body]
    """Return probes: what each layer of a model knows of the label."""


@hookspec
def medmllm_attributions() -> Iterable[AttributionSpec]:  # type: ignore[empty-body]
    """Return attribution methods: which pixels an answer depends on."""


@hookspec
def medmllm_interventions() -> Iterable[InterventionSpec]:  # type: ignore[empty-body]
    """Return interventions: what happens to the answers if something inside the model is changed."""
