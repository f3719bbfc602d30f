"""Qwen3.5: the tower of Qwen3-VL without further connectors, and an LLM most of whose blocks have linear attention."""

from __future__ import annotations

from medmllm_plugins.models.families.qwen2_vl import Qwen2VL


class Qwen35(Qwen2VL):
    """Qwen3.5 (model card, 2026)."""

    title = "Qwen3.5"
    model_type = "qwen3_5"
