"""PaliGemma: positions count from 1."""

from __future__ import annotations

from medmllm_plugins.models.families.family import Family


class PaliGemma(Family):
    """PaliGemma (Beyer et al., arXiv:2407.07726, 2024)."""

    title = "PaliGemma"
    model_type = "paligemma"
    first_position = 1
    answer_token_type = 1
