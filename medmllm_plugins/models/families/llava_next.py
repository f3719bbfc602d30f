"""LLaVA-NeXT: an image is shown whole and in tiles, whose padding is cut off after the connector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from medmllm_plugins.models.families.family import ImageStage, Inputs, IntArray
from medmllm_plugins.models.families.llava import Llava


class LlavaNext(Llava):
    """LLaVA-NeXT (Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024)."""

    title = "LLaVA-NeXT"
    model_type = "llava_next"

    def rows_per_document(self, model: Any, stage: ImageStage, inputs: Inputs) -> list[int]:
        """Return the number of tiles of each document, which has one image."""
        config = model.config
        side = int(config.vision_config.image_size)
        sizes = inputs["image_sizes"].tolist()
        return [int(image_size_to_num_patches(size, config.image_grid_pinpoints, side)) for size in sizes]

    def patches_of_tiles(self, model: Any, inputs: Inputs) -> IntArray:
        """Leave out the empty tiles with which images of fewer tiles are filled up."""
        tiles, pixels = super().patches_of_tiles(model, inputs), inputs["pixel_values"]
        counts = self.rows_per_document(model, "vision", inputs)
        most = pixels.shape[1] if pixels.dim() == 5 else len(pixels)
        used: IntArray = tiles[np.concatenate([np.arange(count) + index * most for index, count in enumerate(counts)])]
        return used

    def prompt_order(self, model: Any, inputs: Inputs, rows: IntArray) -> IntArray:
        """Join the tiles, without padding and with a token at the end of each line, as the model's own code does."""
        counts = self.rows_per_document(model, "connector", inputs)
        # The model's code is given the numbers of the rows; -1 for the token that ends a line.
        numbers = torch.arange(len(rows), dtype=torch.float64).reshape(sum(counts), -1, 1)
        packed, _ = model.model.pack_image_features(
            list(torch.split(numbers, counts)),
            inputs["image_sizes"].cpu(),
            model.config.vision_feature_select_strategy,
            image_newline=torch.tensor([-1.0], dtype=torch.float64),
        )
        order = torch.cat(list(packed))[:, 0].long().numpy()
        ordered: IntArray = np.where(order[:, None] >= 0, rows[order], -1)
        return ordered
