"""Gemma 3: average pooling to a fixed number of tokens an image."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from medmllm_plugins.models.families.family import Family


class Gemma3(Family):
    """Gemma 3 (Gemma Team, arXiv:2503.19786, 2025)."""

    title = "Gemma 3"
    model_type = "gemma3"

    def tokens_per_tile(self, model: Any) -> int:
        """Return the number that the config states."""
        return int(model.config.mm_tokens_per_image)

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the side of the pooled block."""
        return math.isqrt(patches) // math.isqrt(self.tokens_per_tile(model))

    def neutral_norm_weight(self, module: nn.Module) -> float:
        """Return 0 for Gemma's RMS norms, which add 1 to their weight."""
        return 0.0 if "gemma" in type(module).__name__.lower() else 1.0
