"""Medical image classification for lmms-eval: evaluate, probe and attribute medical multimodal LLMs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from medmllm_plugins.models.families.family import Family
    from medmllm_plugins.plugins.hookspecs import hookimpl
    from medmllm_plugins.plugins.specs import (
        AttributionSpec,
        InterventionSpec,
        ModelSpec,
        ProbeSpec,
        PromptStyle,
        TaskFolder,
    )
    from medmllm_plugins.probes.sklearn_probe import SklearnProbe
    from medmllm_plugins.results.run import Run

__version__ = "0.1.0"
__all__ = [
    "AttributionSpec",
    "Family",
    "InterventionSpec",
    "ModelSpec",
    "ProbeSpec",
    "PromptStyle",
    "Run",
    "SklearnProbe",
    "TaskFolder",
    "hookimpl",
]
_MODULES: Final = {
    "AttributionSpec": "plugins.specs",
    "Family": "models.families.family",
    "InterventionSpec": "plugins.specs",
    "ModelSpec": "plugins.specs",
    "ProbeSpec": "plugins.specs",
    "PromptStyle": "plugins.specs",
    "Run": "results.run",
    "SklearnProbe": "probes.sklearn_probe",
    "TaskFolder": "plugins.specs",
    "hookimpl": "plugins.hookspecs",
}
"""The module of each public name, which is imported when the name is first used; only ``Family`` and
``SklearnProbe`` import torch."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
