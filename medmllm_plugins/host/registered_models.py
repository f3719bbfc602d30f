"""One wrapper class for each registered model, made when the host asks for it by dotted path."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.host.model import MedicalMLLM
from medmllm_plugins.plugins.manager import get_manager


def __getattr__(name: str) -> Any:
    """Return the class of a registered model: ``medmllm_plugins.host.registered_models.medm_vl``."""
    spec = get_manager().models().get(name)
    if spec is None or spec.wrapper is not None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: no registered model has that name.")
    return type(name, (MedicalMLLM,), {"__module__": __name__, "__doc__": spec.summary, "spec": spec})
