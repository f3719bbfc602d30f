"""The hooks a plugin may implement; every one is optional, takes no arguments and returns plain declarations.

A plugin is a module (or any object) named by an entry point of the group ``medmllm_plugins``. It marks its
implementations with ``hookimpl`` from this module; this package's own models and tasks come in by the same way
(:mod:`medmllm_plugins.plugins.builtin`).

Stability policy. From version 1.0 on, within a major version, no hook is removed or renamed, none gains a required
argument, and no field of a declaration in :mod:`medmllm_plugins.plugins.specs` is removed, renamed or made required;
before 1.0 the same holds within a minor version. What is to go is first deprecated for at least one minor version, in
which it works and warns. New hooks and new optional fields may come with any minor version. A plugin that implements
a hook of a later version, and is to work with earlier ones too, marks it ``@hookimpl(optionalhook=True)``. The order
in which plugins are called is: this package's own, then by distribution name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pluggy

from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder

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
