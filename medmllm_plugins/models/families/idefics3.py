"""Idefics 3: tiles of a large image, and pixel shuffle."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.models.families.family import Family


class Idefics3(Family):
    """Idefics 3 (Laurençon et al., arXiv:2408.12637, 2024)."""

    title = "Idefics 3"
    model_type = "idefics3"
    vision_blocks = "model.vision_model.encoder.layers"
    vision_norm = "model.vision_model.post_layernorm"
    connector = "model.connector"
    embed = "model.text_model.embed_tokens"
    llm_blocks = "model.text_model.layers"
    llm_norm = "model.text_model.norm"

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the factor of the pixel shuffle."""
        return int(model.config.scale_factor)
