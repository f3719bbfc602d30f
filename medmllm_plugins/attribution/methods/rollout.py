"""Attention rollout, a baseline that uses attention weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.native import attention_kernels
from medmllm_plugins.models.stages import EMBED, layers_of


def attention_rollout(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return how much the last token of the prompt attends to each token through all layers of the LLM.

    Attention of a layer is the mean over its heads, mixed equally with the residual, and layers are multiplied (Abnar
    and Zuidema, arXiv:2005.00928). It is the same for every target.

    Raises:
        ModelError: The model's layers return no attention weights.
    """
    with torch.no_grad(), _attention_weights(case) as attentions:
        case.loaded.prefill(case.inputs)
    if not attentions:
        raise ModelError(
            f"{case.loaded.family.title}: expected layers that return attention weights, got none. Use another method."
        )
    length = attentions[0].shape[-1]
    flow = torch.eye(length, device=attentions[0].device)[-1:]
    for attention in reversed(attentions):
        mixed = (attention + torch.eye(length, device=attention.device)) / 2
        flow = flow @ (mixed / mixed.sum(-1, keepdim=True))
    return {EMBED: Scores(flow[0])}


@contextmanager
def _attention_weights(case: AttributionInput) -> Iterator[list[Tensor]]:
    """Record the mean attention of each layer, (L, L); only the eager implementation returns it."""
    attentions: list[Tensor] = []
    model, implementation = case.loaded.model, case.loaded.model.config._attn_implementation
    blocks = [layer.module for layer in layers_of(case.loaded) if layer.part == "llm" and not layer.enters][:-1]
    handles = []

    def record(_: Any, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor):
            attentions.append(weights[0].float().mean(0))

    try:
        handles = [block.self_attn.register_forward_hook(record) for block in blocks]  # type: ignore[union-attr]
        model.set_attn_implementation(attention_kernels(model.config, "eager"))
        yield attentions
    except AttributeError as error:
        raise ModelError(
            f"{case.loaded.family.title}: expected `self_attn` in each layer of the LLM, got none ({error}). "
            "Use another method."
        ) from error
    finally:
        model.set_attn_implementation(attention_kernels(model.config, implementation))
        for handle in handles:
            handle.remove()
