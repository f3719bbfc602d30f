"""InternVL: pixel shuffle merges blocks of patches."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.models.families.family import Family


class InternVL(Family):
    """InternVL 3 (Zhu et al., arXiv:2504.10479, 2025)."""

    title = "InternVL"
    model_type = "internvl"
    vision_blocks = "model.vision_tower.encoder.layer"
    vision_norm = "model.vision_tower.layernorm"

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the factor of the pixel shuffle."""
        return round(1 / float(model.config.downsample_ratio))
