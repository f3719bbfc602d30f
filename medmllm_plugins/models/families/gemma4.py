"""Gemma 4: images of any shape, padded to one number of patches; blocks of patches are pooled to a token each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families.family import (
    FlatFamily,
    FloatArray,
    ImageStage,
    Inputs,
    IntArray,
    VisualInput,
    merge_grid,
)


class Gemma4(FlatFamily):
    """Gemma 4 (model card, 2026).

    ``pixel_values``, (images, patches, 3 * p * p), and ``inputs["image_position_ids"]``, (images, patches, 2), hold
    the patches of each image and their columns and rows; those of padding are -1. The tower keeps padding, (images,
    patches, d); the pooling before the connector drops it.
    """

    title = "Gemma 4"
    model_type = "gemma4"
    vision_norm = None
    connector = "model.embed_vision"

    def forward_prompt(self, model: Any, inputs: Inputs, **options: Any) -> tuple[Any, Tensor]:
        """Run a batch of prompts with their images through the model.

        Raises:
            ModelError: the inputs do not say which tokens are images.
        """
        if model.config.text_config.use_bidirectional_attention == "vision" and "mm_token_type_ids" not in inputs:
            raise ModelError(
                "gemma4: expected `mm_token_type_ids` among the inputs, without which image tokens do not see those "
                "after them; take them from the processor."
            )
        keep = options.get("logits_to_keep")
        if isinstance(keep, int) and keep:
            # For a number, blocks that take their keys from others compute that many tokens and no others, so that
            # nothing of the image could be recorded there. On the CPU, since the head may be on any device.
            length = inputs["input_ids"].shape[1]
            options["logits_to_keep"] = torch.arange(length - keep, length)
        return super().forward_prompt(model, inputs, **options)

    def row_mask(self, model: Any, stage: ImageStage, inputs: Inputs) -> Tensor | None:
        """Return which patches of the tower are no padding, (images, patches); the connector returns none."""
        return _is_patch(inputs) if stage == "vision" else None

    def patches_per_image(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the number of patches of each image, (images,), int64."""
        return _is_patch(inputs).sum(-1)

    def merge_sides(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the side of the block of patches that becomes one token, (images,), int64."""
        side = int(model.config.vision_config.pooling_kernel_size)
        return torch.full_like(inputs["image_position_ids"][:, 0, 0], side)

    def pixels_by_document(self, model: Any, inputs: Inputs) -> list[Tensor]:
        """Return the patches of each document, (patches, 3 * p * p), without padding."""
        patches = inputs["pixel_values"][_is_patch(inputs)]
        return list(torch.split(patches, self.rows_per_document(model, "vision", inputs)))

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patch of each row, (rows, 1); -1 for padding."""
        here = _is_patch(inputs).flatten().cpu().numpy()
        return np.where(here, np.arange(len(here)), -1)[:, None]

    def connector_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches that each row of the connector's output comes from, (rows, k)."""
        side = int(model.config.vision_config.pooling_kernel_size)
        return np.concatenate([merge_grid(grid, side) for grid in _grids(inputs)])

    def grid_key(self, inputs: Inputs) -> tuple[int, ...]:
        """Return rows and columns of the images' patches."""
        return tuple(side for grid in _grids(inputs) for side in grid.shape) if "image_position_ids" in inputs else ()

    def patch_boxes(self, model: Any, inputs: Inputs, shown: VisualInput) -> tuple[IntArray, FloatArray]:
        """Return the picture and the box of each patch; an image is stretched over the whole of its grid.

        Raises:
            ModelError: the inputs are those of other pictures.
        """
        pictures, positions = self.pictures(shown), inputs["image_position_ids"].cpu().numpy()
        expected, got = (len(pictures), positions.shape[1]), tuple(inputs["pixel_values"].shape[:2])
        if got != expected or len(positions) != len(pictures):
            raise ModelError(
                f"Expected patches {expected} of each picture, got {got}: the input is another document's."
            )
        sides = positions.max(1, keepdims=True) + 1  # columns and rows of each picture
        boxes = np.concatenate([positions / sides, (positions + 1) / sides], axis=-1).reshape(-1, 4)
        here = _is_patch(inputs).flatten().cpu().numpy()
        numbers = np.repeat(np.arange(len(positions)), positions.shape[1])
        return np.where(here, numbers, -1), np.where(here[:, None], boxes, np.nan)

    def key_stores(self, model: Any) -> Mapping[int, str]:
        """Return the last block of each kind of attention before the first one without keys of its own."""
        text = model.config.text_config
        first = self.blocks_with_keys(model, len(text.layer_types))
        if first == len(text.layer_types):
            return {}
        return {max(index for index in range(first) if text.layer_types[index] == kind): kind for kind in _kinds(text)}

    def blocks_with_keys(self, model: Any, blocks: int) -> int:
        """Return how many blocks make keys and values of their own; in the small sizes, the last ones do not."""
        return blocks - int(model.config.text_config.num_kv_shared_layers or 0)

    def cache_layer(self, model: Any, block: int) -> int:
        """Return the number of the block itself, or of the one whose keys and values it reads."""
        kinds = model.config.text_config.layer_types
        if block < self.blocks_with_keys(model, len(kinds)):
            return block
        return next(number for number, kind in self.key_stores(model).items() if kind == kinds[block])

    def further_embeddings(self, model: Any) -> tuple[str, ...]:
        """Return the table from which blocks of the small sizes get an input of their own for each token."""
        return ("model.language_model.embed_tokens_per_layer",) if self.reads_embeddings(model) else ()

    def reads_embeddings(self, model: Any) -> bool:
        """Return whether inputs of blocks are made of the LLM's input, too; so in the small sizes."""
        return bool(model.config.text_config.hidden_size_per_layer_input)


def _kinds(text: Any) -> list[str]:
    return sorted(set(text.layer_types))


def _is_patch(inputs: Inputs) -> Tensor:
    return (inputs["image_position_ids"] >= 0).all(-1)


def _grids(inputs: Inputs) -> Sequence[IntArray]:
    """Return the numbers of each image's patches, (rows, columns), padding among those that are counted."""
    here = _is_patch(inputs).cpu().numpy()
    numbers = np.arange(here.size).reshape(here.shape)
    columns = inputs["image_position_ids"][..., 0].amax(-1).cpu().numpy() + 1
    return [own[some].reshape(-1, width) for own, some, width in zip(numbers, here, columns, strict=True)]
