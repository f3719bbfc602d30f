"""Whether the parts of a model look trained: a tower that was never loaded answers all the same, only worse."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from medmllm_plugins.models.families.family import Family, stage_module

LEAST = 4096
"""Smaller matrices say too little about how they came about."""
_SIGMAS = 4.0


def untrained_parts(model: Any, family: Family) -> tuple[str, ...]:
    """Return a warning for each part whose matrices all look as they were initialised.

    A matrix looks untrained when it is constant, or when its mean and standard deviation are those of the normal
    distribution that the config's ``initializer_range`` names, within four standard errors: training moves the spread
    of a weight matrix by far more than the tenths of a percent that chance allows. Norms and biases are ignored,
    since they start at constants.

    Returns:
        One sentence for each suspicious part, empty where all is well. The check is of statistics alone, so that the
        weights of a small random model drawn in another way pass.
    """
    parts = {"vision tower": family.vision_blocks, "connector": family.connector}
    warnings = []
    for title, name in parts.items():
        matrices = [
            value for value in stage_module(model, name).parameters() if value.dim() > 1 and value.numel() >= LEAST
        ]
        spread = _initial_spread(model, title)
        if matrices and all(_as_drawn(value, spread) for value in matrices):
            warnings.append(
                f"the {title}'s {len(matrices)} weight matrices look as if they had never been trained (constant, or "
                f"normal with the initial spread {spread:g})"
            )
    return tuple(warnings)


def _initial_spread(model: Any, title: str) -> float:
    configs = [getattr(model.config, "vision_config", None), model.config.get_text_config(), model.config]
    if title == "connector":
        configs.reverse()
    return next((float(config.initializer_range) for config in configs if hasattr(config, "initializer_range")), 0.02)


def _as_drawn(value: nn.Parameter, spread: float) -> bool:
    if not value.is_floating_point():
        return False  # quantised
    values = value.detach().float()
    mean, deviation = float(values.mean()), float(values.std())
    if deviation == 0.0:
        return True
    count = values.numel()
    return abs(deviation - spread) <= _SIGMAS * spread / math.sqrt(2 * count) and abs(
        mean
    ) <= _SIGMAS * spread / math.sqrt(count)
