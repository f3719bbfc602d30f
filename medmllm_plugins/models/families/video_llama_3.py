"""VideoLLaMA 3: a tower with rotary positions for images of any size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medmllm_plugins.models.families.family import FlatFamily, Inputs


class VideoLlama3(FlatFamily):
    """VideoLLaMA 3 (Zhang et al., arXiv:2501.13106, 2025); Hulu-Med is one."""

    title = "VideoLLaMA 3"
    model_type = "video_llama_3"
    vision_blocks = "model.vision_model.encoder.layers"
    vision_norm = "model.vision_model.post_layernorm"
    connector = "model.projector"

    def merge_sides(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the factor by which the processor has each image merged."""
        return inputs["image_merge_sizes"]
