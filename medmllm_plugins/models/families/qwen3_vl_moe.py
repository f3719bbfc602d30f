"""Qwen3-VL with a mixture of experts in its LLM."""

from __future__ import annotations

from medmllm_plugins.models.families.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL-MoE: stages and layout are those of Qwen3-VL."""

    title = "Qwen3-VL-MoE"
    model_type = "qwen3_vl_moe"
