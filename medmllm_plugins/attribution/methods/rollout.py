"""Attention rollout: a plain baseline that looks at attention alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.stages import EMBED, layers_of


def attention_rollout(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """How much the last token of the prompt attends to each token through all layers of the LLM.

    Attention of a layer is the mean over its heads, half of it kept for the residual, and layers are multiplied (Abnar
    and Zuidema, arXiv:2005.00928). It is the same for every target.

    Raises:
        ModelError: the model's layers give no attention weights.
    """
    with torch.no_grad(), _attentions(case) as seen:
        case.loaded.prefill(case.inputs)
    if not seen:
        raise ModelError(
            f"{case.loaded.family.title}: expected layers that give their attention, found none that does."
        )
    length = seen[0].shape[-1]
    flow = torch.eye(length, device=seen[0].device)[-1:]
    for one in reversed(seen):
        mixed = (one + torch.eye(length, device=one.device)) / 2
        flow = flow @ (mixed / mixed.sum(-1, keepdim=True))
    return {EMBED: Scores(flow[0])}


@contextmanager
def _attentions(case: AttributionInput) -> Iterator[list[Tensor]]:
    """Mean attention of each layer, (L, L), as the prompt passes; only the plain kernel gives it."""
    seen: list[Tensor] = []
    model, usual = case.loaded.model, case.loaded.model.config._attn_implementation
    blocks = [place.module for place in layers_of(case.loaded) if place.part == "llm" and not place.enters][:-1]
    handles = []

    def look(_: Any, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor):
            seen.append(weights[0].float().mean(0))

    try:
        handles = [block.self_attn.register_forward_hook(look) for block in blocks]  # type: ignore[union-attr]
        model.set_attn_implementation("eager")
        yield seen
    except AttributeError as error:
        raise ModelError(
            f"{case.loaded.family.title}: expected `self_attn` in each layer of the LLM ({error})."
        ) from error
    finally:
        model.set_attn_implementation(usual)
        for handle in handles:
            handle.remove()
