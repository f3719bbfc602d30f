"""Whether a model is as it was: its weights, its hooks, and its modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from medmllm_plugins.models.base import LoadedModel

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class ModelState:
    """What code that runs a model must leave as it was.

    Attributes:
        weights: sum of each parameter and buffer, and of its absolute values.
        hooks: number of hooks of each module.
        forwards: modules whose ``forward`` is replaced.
        modes: modules in training mode, and parameters with gradients.
    """

    weights: dict[str, tuple[float, float]]
    hooks: dict[str, int]
    forwards: tuple[str, ...]
    modes: tuple[str, ...]

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelState:
        """Read the state of a model."""
        model: Any = loaded.model
        modules = dict(model.named_modules())
        return cls(
            weights={name: _sums(value) for name, value in model.state_dict().items()},
            hooks={name: sum(len(getattr(module, kind)) for kind in _HOOKS) for name, module in modules.items()},
            forwards=tuple(name for name, module in modules.items() if "forward" in module.__dict__),
            modes=(
                *(f"training mode of {name}" for name, module in modules.items() if module.training),
                *(f"requires_grad of {name}" for name, value in model.named_parameters() if value.requires_grad),
                *(f"a gradient of {name}" for name, value in model.named_parameters() if value.grad is not None),
            ),
        )

    def differences(self, other: ModelState) -> list[str]:
        """Return what another state, of the same model later, has that this one has not."""
        changed = [f"other weights in {name}" for name, sums in self.weights.items() if other.weights.get(name) != sums]
        changed += [
            f"hooks on {name or 'the model'}" for name, count in other.hooks.items() if count != self.hooks.get(name)
        ]
        changed += [f"another forward of {name}" for name in set(other.forwards) ^ set(self.forwards)]
        return changed + sorted(set(other.modes) ^ set(self.modes))


def _sums(value: torch.Tensor) -> tuple[float, float]:
    total = value.double()
    return float(total.sum()), float(total.abs().sum())
