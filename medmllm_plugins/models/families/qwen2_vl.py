"""Qwen2-VL: image tokens have positions in three directions, which the model computes itself."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families.family import FlatFamily, Inputs


class Qwen2VL(FlatFamily):
    """Qwen2-VL (Wang et al., arXiv:2409.12191, 2024)."""

    title = "Qwen2-VL"
    model_type = "qwen2_vl"
    vision_blocks = "model.visual.blocks"
    vision_norm: ClassVar[str | None] = None  # a part of the connector
    connector = "model.visual.merger"

    def forward_prompt(self, model: Any, inputs: Inputs, **options: Any) -> tuple[Any, Tensor]:
        """Run a batch of prompts; the model keeps by how much the positions differ from the number of tokens.

        Raises:
            ModelError: the inputs do not say which tokens are images.
        """
        if "mm_token_type_ids" not in inputs:
            raise ModelError(
                f"{self.model_type}: expected `mm_token_type_ids` among the inputs, without which image tokens are "
                "placed like text; take them from the processor."
            )
        model.model.rope_deltas = None  # left from another batch it would be used for this one
        if "pixel_values" not in inputs:  # the model keeps nothing of prompts without an image
            return super().forward_prompt(model, inputs, **options)
        output = model(**inputs, **options)
        mask = inputs["attention_mask"]
        return output, mask.sum(-1) + model.model.rope_deltas.to(mask.device).view(-1)
