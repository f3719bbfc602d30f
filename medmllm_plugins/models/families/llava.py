"""LLaVA: the connector reads an earlier layer of the tower, with or without its first token."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.models.families.family import Family, IntArray


class Llava(Family):
    """LLaVA (Liu et al., arXiv:2310.03744, 2023)."""

    title = "LLaVA"
    model_type = "llava"

    def tokens_per_tile(self, model: Any) -> int:
        """Return the number that the config states."""
        return int(model.config.image_seq_length)

    def connector_rows(self, model: Any, rows: IntArray) -> IntArray:
        """Leave out the first row where the config says so, whether or not it is a class token."""
        return rows[:, 1:] if model.config.vision_feature_select_strategy == "default" else rows
