"""Qwen2.5-VL: its tower attends within windows, and orders blocks of patches by window."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.vision_utils import get_vision_window_index

from medmllm_plugins.models.families.family import Inputs, IntArray
from medmllm_plugins.models.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL (Bai et al., arXiv:2502.13923, 2025)."""

    title = "Qwen2.5-VL"
    model_type = "qwen2_5_vl"

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patch of each row, in the order of the windows."""
        patches = super().vision_patches(model, inputs, layer)
        block = int(model.config.vision_config.spatial_merge_size) ** 2
        return patches.reshape(-1, block)[_window_order(model, inputs)].reshape(-1, 1)

    def prompt_order(self, model: Any, inputs: Inputs, rows: IntArray) -> IntArray:
        """Undo the order of the windows, as the model does after the connector."""
        return rows[np.argsort(_window_order(model, inputs))]


def _window_order(model: Any, inputs: Inputs) -> IntArray:
    """Return the blocks of patches in the order of the windows."""
    vision = model.config.vision_config
    order, _ = get_vision_window_index(
        inputs["image_grid_thw"].cpu(), vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    blocks: IntArray = order.numpy()
    return blocks
