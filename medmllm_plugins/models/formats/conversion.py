"""A transformers model filled from a checkpoint that names its tensors in another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from transformers import PreTrainedModel

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.adapters import merge_adapter
from medmllm_plugins.models.checkpoint import Rows, Weights, fill, match_weights
from medmllm_plugins.models.options import LoadOptions

Model = TypeVar("Model", bound=PreTrainedModel)
Rename = Callable[[str], str | None]


def build_model(
    kind: type[Model],
    config: Any,
    weights: Weights,
    rename: Rename,
    options: LoadOptions,
    *,
    left_out: Sequence[str] = (),
) -> Model:
    """Build a model and fill it from a checkpoint of other tensor names.

    Names and shapes are checked before any tensor is read. The parameters are made on the meta device, so that the
    weights are in memory once.

    ``rename`` gives transformers' name for a checkpoint's name, ``None`` for a tensor left out on purpose; ``left_out``
    are options that these models do not take.

    Returns:
        The model in evaluation mode, its parameters frozen (activations can still be differentiated).

    Raises:
        ModelError: the weights do not fit.
        OptionError: the attention kernel cannot be had, or an option is one of those left out.
    """
    if refused := [name for name in left_out if getattr(options, name) is not None]:
        raise OptionError(
            f"Got {', '.join(f'`{name}={getattr(options, name)}`' for name in refused)}, which models that are "
            "filled from their authors' own format do not take; save the model in transformers' format first, "
            "or leave it out."
        )
    config._attn_implementation = options.attn_implementation
    config.dtype = options.torch_dtype
    try:
        # Buffers (rotary frequencies, position indices) are not in checkpoints, so they must be real from the start.
        with init_empty_weights(include_buffers=False):
            model: Any = kind(config)
    except ImportError as error:
        raise OptionError(f"Got `attn_implementation={options.attn_implementation}`, but {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    names = match_weights(weights, rename, expected)
    spread = options.device_map is not None
    fill(model, weights, names, options.torch_dtype, torch.device("cpu") if spread else options.torch_device)
    if config.tie_word_embeddings and model.lm_head.weight is not model.model.language_model.embed_tokens.weight:
        raise ModelError("transformers did not tie the output embeddings to the input embeddings as the config asks.")
    if options.peft is not None:
        model = merge_adapter(model, options.peft)
    model.requires_grad_(False)
    if spread:
        _spread(model, str(options.device_map))
    evaluated: Model = model.eval()
    return evaluated


def _spread(model: Any, how: str) -> None:
    """Divide a model over all devices, as transformers does for ``device_map``, without dividing a block."""
    whole = sorted(model._no_split_modules or ())
    memory = None
    if how != "sequential":
        memory = get_balanced_memory(
            model, dtype=model.dtype, no_split_module_classes=whole, low_zero=how == "balanced_low_0"
        )
    devices = infer_auto_device_map(model, max_memory=memory, dtype=model.dtype, no_split_module_classes=whole)
    if "disk" in devices.values():
        raise ModelError(f"Got `device_map={how}`, but the model does not fit into the memory of all devices.")
    dispatch_model(model, devices)


def split_rows(weights: Weights, pattern: re.Pattern[str], parts: str) -> Weights:
    """Return weights whose stacked tensors are listed as tensors of their own, such as queries, keys and values.

    Args:
        weights: the weights as they are in the files.
        pattern: of the names of stacked tensors; its first group is what each part's letter takes the place of.
        parts: a letter for each part, in the order of the rows.

    Raises:
        ModelError: the rows of a stacked tensor cannot be divided among the parts.
    """
    where, shapes, rows = dict(weights.where), dict(weights.shapes), dict(weights.rows)
    for name in weights.where:
        if (match := pattern.match(name)) is None:
            continue
        count, *others = shapes[name] or (0,)
        if count % len(parts):
            raise ModelError(
                f"{where[name]}: expected {name} to hold {len(parts)} parts of equal size, got {count} rows."
            )
        each = count // len(parts)
        for index, letter in enumerate(parts):
            part = f"{name[: match.start(1)]}{letter}{name[match.end(1) :]}"
            where[part], shapes[part] = where[name], (each, *others)
            rows[part] = Rows(name, index * each, (index + 1) * each)
        del where[name], shapes[name]
    return replace(weights, where=where, shapes=shapes, rows=rows)


def rename_by_table(name: str, table: Sequence[tuple[re.Pattern[str], str]]) -> str:
    """Return a tensor's name with the first pattern of ``table`` that matches its beginning replaced."""
    return next((pattern.sub(new, name) for pattern, new in table if pattern.match(name)), name)


FOREIGN = ("load_in", "trust_remote_code")
"""Options that a model filled from another format does not take."""
