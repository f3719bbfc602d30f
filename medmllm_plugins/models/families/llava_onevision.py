"""LLaVA-OneVision: as LLaVA-NeXT, but the tiles of large images are joined and scaled down to fewer tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from medmllm_plugins.models.families.family import Family, FloatArray, ImageStage, Inputs, IntArray
from medmllm_plugins.models.families.llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision (Li et al., arXiv:2408.03326, 2024)."""

    title = "LLaVA-OneVision"
    model_type = "llava_onevision"

    def tokens_per_tile(self, model: Any) -> int:
        """Return the number of patches."""
        return Family.tokens_per_tile(self, model)

    def rows_per_document(self, model: Any, stage: ImageStage, inputs: Inputs) -> list[int]:
        """Return the number of tiles of each document; one for each image where it has several."""
        tiles = iter(self._tiles_per_image(model, inputs))
        return [sum(next(tiles) for _ in range(images)) for images in inputs["batch_num_images"].tolist()]

    def patches_of_tiles(self, model: Any, inputs: Inputs) -> IntArray:
        """Leave out the empty tiles with which images of fewer tiles are filled up."""
        tiles, counts = Family.patches_of_tiles(self, model, inputs), self._tiles_per_image(model, inputs)
        most = inputs["pixel_values"].shape[1]
        used: IntArray = tiles[np.concatenate([np.arange(count) + index * most for index, count in enumerate(counts)])]
        return used

    def prompt_order(self, model: Any, inputs: Inputs, rows: IntArray) -> IntArray:
        """Join the tiles as the model's own code does; a token of a scaled image comes from up to four rows."""
        counts = self._tiles_per_image(model, inputs)
        sizes = inputs["image_sizes"].cpu()
        each = len(rows) // sum(counts)
        # The model's code is given where each row is on the joined tiles; scaling gives coordinates between rows.
        coordinates = [_coordinates(model, size, count, each) for size, count in zip(sizes, counts, strict=True)]
        packed, _ = model.model.pack_image_features(
            coordinates,
            sizes,
            image_newline=torch.full((3,), -1.0, dtype=torch.float64),
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )
        ordered, start = [], 0
        for tokens, known in zip(packed, coordinates, strict=True):
            own = known.reshape(-1, 3)
            ordered.append(_patches_at(tokens.numpy(), own.numpy(), rows[start : start + len(own)]))
            start += len(own)
        joined = np.concatenate(ordered)
        # Without scaling each token has one row.
        return joined[:, : rows.shape[1]] if (joined[:, rows.shape[1] :] < 0).all() else joined

    def _tiles_per_image(self, model: Any, inputs: Inputs) -> list[int]:
        """Return the number of tiles of each image: one where a document has several."""
        config, side = model.config, int(model.config.vision_config.image_size)
        several = [number > 1 for number in inputs["batch_num_images"].tolist() for _ in range(number)]
        return [
            1 if together else int(image_size_to_num_patches(size, config.image_grid_pinpoints, side))
            for size, together in zip(inputs["image_sizes"].tolist(), several, strict=True)
        ]


def _coordinates(model: Any, size: Tensor, tiles: int, each: int) -> Tensor:
    """Return 0 for the whole image and 1 for its tiles, and row and column on the joined tiles, (tiles, each, 3)."""
    edge = math.isqrt(each)
    grid, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
    _, across = get_anyres_image_grid_shape(size, grid, side)  # type: ignore[no-untyped-call]
    tile, row, column = torch.meshgrid(*map(torch.arange, (tiles, edge, edge)), indexing="ij")
    below, right = (tile - 1) // across, (tile - 1) % across
    whole = tile == 0
    parts = [~whole, torch.where(whole, row, below * edge + row), torch.where(whole, column, right * edge + column)]
    return torch.stack(parts, dim=-1).reshape(tiles, each, 3).double()


def _patches_at(tokens: FloatArray, known: FloatArray, rows: IntArray) -> IntArray:
    """Return the patches of the rows around each token, (n, 4 k), -1 for none; bilinear scaling reads these."""
    index = {tuple(known_at): number for number, known_at in enumerate(known.astype(int).tolist())}
    patches = np.full((len(tokens), 4, rows.shape[1]), -1)
    for token, (flag, y, x) in enumerate(tokens):
        if flag < 0:  # the token that ends a line
            continue
        around = {(a, b) for a in _neighbours(y) for b in _neighbours(x)}
        for corner, (a, b) in enumerate(sorted(around)):
            patches[token, corner] = rows[index[round(flag), a, b]]
    return patches.reshape(len(tokens), -1)


def _neighbours(coordinate: float) -> set[int]:
    return {math.floor(coordinate + 1e-6), math.ceil(coordinate - 1e-6)}
