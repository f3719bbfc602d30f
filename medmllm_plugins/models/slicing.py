"""Which part of a stage's output belongs to which document of a batch.

Towers lay patches out in two ways: in one flat list, image after image, each as long as its grid says; or in a row for
each tile, where an image has one tile or several. Documents of a batch may differ in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families.family_registry import Family

Stage = Literal["vision", "connector"]


def by_document(model: Any, family: Family, stage: Stage, output: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Divide a stage's output among the documents of a batch.

    Args:
        model: the transformers model.
        family: its architecture.
        stage: ``"vision"`` for a block of the tower or its norm, ``"connector"`` for the connector.
        output: what the stage returned for the whole batch: (P, d) flat, or (tiles, patches, d).
        inputs: the batch's input, as the processor made it.

    Returns:
        For each of B documents its own patches or tokens, (n, d), in the tower's order (in Qwen2.5-VL's blocks that of
        its windows). A class token before a tile's patches is left out.

    Raises:
        ModelError: the output is not as long as the input says.
    """
    counts = rows_of(model, family, stage, inputs)
    if sum(counts) != output.shape[0]:
        raise wrong_length(family, stage, sum(counts), output.shape[0])
    if family.grid:
        return list(torch.split(output, counts))
    if stage == "vision" and has_class_token(model, output):
        output = output[:, 1:]
    return [part.reshape(-1, part.shape[-1]) for part in torch.split(output, counts)]


def rows_of(model: Any, family: Family, stage: Stage, inputs: Mapping[str, Tensor]) -> list[int]:
    """How many rows of a stage's output belong to each of B documents: patches of a flat tower, else tiles."""
    return _flat_counts(model, stage, inputs) if family.grid else _tile_counts(model, inputs)


def has_class_token(model: Any, output: Tensor) -> bool:
    """Whether a tower's output, (tiles, patches, d), holds one token before the patches."""
    return output.dim() == 3 and output.shape[1] == _patches_of_a_tile(model) + 1


def wrong_length(family: Family, stage: Stage, expected: int, found: int) -> ModelError:
    """The error for an output that is not as long as the input says."""
    return ModelError(
        f"{family.title}: expected {expected} rows from the {stage} stage, by the batch's input, found {found}; this "
        "version of transformers lays it out differently."
    )


def image_tokens(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Number of image tokens in each document's prompt, (B,), int64."""
    return (inputs["input_ids"] == int(model.config.image_token_id)).sum(1)


def _flat_counts(model: Any, stage: Stage, inputs: Mapping[str, Tensor]) -> list[int]:
    patches = inputs["image_grid_thw"].prod(-1)
    if "image_merge_sizes" in inputs:
        merge = inputs["image_merge_sizes"] ** 2
    else:
        merge = torch.full_like(patches, int(model.config.vision_config.spatial_merge_size) ** 2)
    tokens = patches // merge
    # Images stand in the order of the documents, and each has as many tokens in its document's prompt.
    ends, wanted = tokens.cumsum(0), image_tokens(model, inputs).cumsum(0).to(tokens.device)
    owner = torch.searchsorted(wanted, ends)
    each = patches if stage == "vision" else tokens
    found: list[int] = torch.zeros_like(wanted).index_add_(0, owner, each.to(wanted.dtype)).tolist()
    return found


def _tile_counts(model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    config = model.config
    if config.model_type == "llava_next":
        sizes = inputs["image_sizes"].tolist()
        side = int(config.vision_config.image_size)
        return [int(image_size_to_num_patches(size, config.image_grid_pinpoints, side)) for size in sizes]
    each = _tokens_of_a_tile(model)
    return [int(count) // each for count in image_tokens(model, inputs).tolist()]


def _patches_of_a_tile(model: Any) -> int:
    vision = model.config.vision_config
    side, patch = (one[0] if isinstance(one, list | tuple) else one for one in (vision.image_size, vision.patch_size))
    return (int(side) // int(patch)) ** 2


def _tokens_of_a_tile(model: Any) -> int:
    """Tokens that stand for one tile."""
    config = model.config
    stated = getattr(config, "mm_tokens_per_image", None)  # Gemma 3
    if stated is not None:
        return int(stated)
    if config.model_type == "internvl":
        return int(_patches_of_a_tile(model) * config.downsample_ratio**2)
    if config.model_type in ("idefics3", "smolvlm"):
        return _patches_of_a_tile(model) // int(config.scale_factor) ** 2
    if config.model_type == "llava":
        return int(config.image_seq_length)
    return _patches_of_a_tile(model)
