"""GLM-4V: a norm ends the tower, and a convolution and an MLP merge blocks of its patches into tokens."""

from __future__ import annotations

from medmllm_plugins.models.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """GLM-4.1V (arXiv:2507.01006, 2025); positions are those of Qwen2-VL."""

    title = "GLM-4V"
    model_type = "glm4v"
    vision_norm = "model.visual.post_layernorm"
    before_connector = ("model.visual.downsample",)
