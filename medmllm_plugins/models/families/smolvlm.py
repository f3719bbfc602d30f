"""SmolVLM."""

from __future__ import annotations

from medmllm_plugins.models.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """SmolVLM (Marafioti et al., arXiv:2504.05299, 2025)."""

    title = "SmolVLM"
    model_type = "smolvlm"
    needs = ("num2words",)
