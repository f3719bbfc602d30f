"""Qwen3-VL."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.models.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """Qwen3-VL; what it adds to the LLM's states between blocks (deepstack) comes after what the blocks return."""

    title = "Qwen3-VL"
    model_type = "qwen3_vl"

    def vision_blocks_beside(self, model: Any) -> tuple[int, ...]:
        """Return the blocks whose states go to further connectors (deepstack)."""
        return tuple(int(index) for index in model.config.vision_config.deepstack_visual_indexes)
