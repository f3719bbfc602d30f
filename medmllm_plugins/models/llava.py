"""LLaVA as transformers has it: vision tower, MLP connector, LLM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import init_empty_weights
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.checkpoint import Weights, fill, match_weights


def build_llava(
    config: LlavaConfig,
    weights: Weights,
    rename: Callable[[str], str | None],
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str | None,
) -> LlavaForConditionalGeneration:
    """Build a LLaVA model and fill it from a checkpoint of other tensor names.

    Names and shapes are checked before any tensor is read. The parameters are made on the meta device, so that the
    weights are in memory once.

    Args:
        config: shapes of all parts.
        weights: the checkpoint.
        rename: gives transformers' name for a checkpoint's name; ``None`` for a tensor left out on purpose.
        dtype: dtype of the weights.
        device: where the model goes.
        attn_implementation: as in :class:`medmllm_plugins.models.options.LoadOptions`.

    Returns:
        The model in evaluation mode, its parameters frozen (activations can still be differentiated).

    Raises:
        ModelError: the weights do not fit.
        OptionError: the attention implementation cannot be had.
    """
    config._attn_implementation = attn_implementation
    config.dtype = dtype
    try:
        # Buffers (rotary frequencies, position indices) are not in checkpoints, so they must be real from the start.
        with init_empty_weights(include_buffers=False):
            model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config)
    except ImportError as error:
        raise OptionError(f"Got `attn_implementation={attn_implementation}`, but {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    names = match_weights(weights, rename, expected)
    fill(model, weights, names, dtype, device)
    if config.tie_word_embeddings and model.lm_head.weight is not model.model.language_model.embed_tokens.weight:
        raise ModelError("transformers did not tie the output embeddings to the input embeddings as the config asks.")
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model
