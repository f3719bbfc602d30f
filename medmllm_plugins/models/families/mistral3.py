"""Mistral 3: images of any size in one list of patches, blocks of which are merged, with a token after each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmllm_plugins.models.families.family import FlatFamily, Inputs, IntArray, merge_grid


class Mistral3(FlatFamily):
    """Mistral Small 3.1 and later (model card, 2025) with Pixtral's tower (Agrawal et al., arXiv:2410.07073, 2024).

    ``inputs["image_sizes"]`` holds height and width of each image; ``pixel_values`` are padded to the largest.
    """

    title = "Mistral 3"
    model_type = "mistral3"
    vision_blocks = "model.vision_tower.transformer.layers"
    vision_norm = None

    def to_rows(self, layer: str, output: Tensor) -> Tensor:
        """Drop the first axis of the tower's output, (1, patches, d)."""
        return output if layer == "connector" else output.squeeze(0)

    def from_rows(self, layer: str, rows: Tensor) -> Tensor:
        """Put the first axis back."""
        return rows if layer == "connector" else rows.unsqueeze(0)

    def patches_per_image(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the number of patches of each image, (images,), int64."""
        return self._grids(model, inputs).prod(-1)

    def pixels_by_document(self, model: Any, inputs: Inputs) -> list[Tensor]:
        """Return the pixel values of each document, image after image, (values,), without padding."""
        images = [
            pixels[:, :rows, :columns].reshape(-1)
            for pixels, (rows, columns) in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True)
        ]
        counts = [len(image) // (3 * self.patch_side(model) ** 2) for image in images]
        documents, first = [], 0
        for wanted in self.rows_per_document(model, "vision", inputs):
            last = first
            while sum(counts[first:last]) < wanted:
                last += 1
            documents.append(torch.cat(images[first:last]) if last > first else images[0][:0])
            first = last
        return documents

    def merge_sides(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the side of the block of patches that becomes one token, (images,), int64."""
        return torch.full_like(inputs["image_sizes"][:, 0], int(model.config.spatial_merge_size))

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patch of each row, (rows, 1); patches of padding are left out."""
        return np.concatenate([grid.reshape(-1, 1) for grid in self._patches_of_images(model, inputs)])

    def connector_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches that each row of the connector's output comes from, (rows, k)."""
        side = int(model.config.spatial_merge_size)
        return np.concatenate([merge_grid(grid, side) for grid in self._patches_of_images(model, inputs)])

    def grid_key(self, inputs: Inputs) -> tuple[int, ...]:
        """Return height and width of the images."""
        return tuple(inputs["image_sizes"].flatten().tolist()) if "image_sizes" in inputs else ()

    def _grids(self, model: Any, inputs: Inputs) -> Tensor:
        """Return rows and columns of patches of each image, (images, 2)."""
        return inputs["image_sizes"] // self.patch_side(model)

    def _patches_of_images(self, model: Any, inputs: Inputs) -> list[IntArray]:
        """Return the numbers of each image's patches, (rows, columns), among those of the padded images."""
        pixels, side = inputs["pixel_values"], self.patch_side(model)
        down, across = pixels.shape[-2] // side, pixels.shape[-1] // side
        numbers = np.arange(len(pixels) * down * across).reshape(len(pixels), down, across)
        grids = self._grids(model, inputs).tolist()
        return [image[:rows, :columns] for image, (rows, columns) in zip(numbers, grids, strict=True)]
