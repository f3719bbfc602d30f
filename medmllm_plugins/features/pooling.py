"""One vector for each document from what a layer returns for a batch.

Sums are float32 whatever the model's dtype, and a whole layer is never copied to float32 where all documents have the
same number of rows, which is the usual case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import Family, ImageStage, select_rows
from medmllm_plugins.prompts.feature_options import CLS, LAST, MAX, MEAN


@dataclass(slots=True)
class BatchLayout:
    """Where the documents of a batch are in what layers return.

    Attributes:
        rows: by stage, the number of entries of the first output axis of each of B documents.
        masks: by stage, which rows hold a part of an image, see
            :meth:`medmllm_plugins.models.families.family.Family.row_mask`; ``None`` where all do.
        class_tokens: number of tokens before the patches of each tile.
        positions: indices of the image tokens in the prompts laid end to end, (T,), int64; by device.
    """

    family: Family
    rows: Mapping[ImageStage, list[int]]
    masks: Mapping[ImageStage, Tensor | None]
    class_tokens: int
    tokens: list[int]
    positions: dict[torch.device, Tensor]

    @classmethod
    def of(cls, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> BatchLayout:
        """Compute the layout of a batch's input."""
        mask = loaded.image_positions(inputs)
        positions = mask.flatten().nonzero().squeeze(1)
        return cls(
            loaded.family,
            {
                "vision": loaded.rows_per_document("vision", inputs),
                "connector": loaded.rows_per_document("connector", inputs),
            },
            {
                "vision": loaded.family.row_mask(loaded.model, "vision", inputs),
                "connector": loaded.family.row_mask(loaded.model, "connector", inputs),
            },
            loaded.family.class_tokens(loaded.model),
            mask.sum(1).tolist(),
            {positions.device: positions},
        )

    def positions_on(self, device: torch.device) -> Tensor:
        """Return :attr:`positions` on a device."""
        if device not in self.positions:
            self.positions[device] = next(iter(self.positions.values())).to(device)
        return self.positions[device]


def pool_images(stage: ImageStage, output: Tensor, layout: BatchLayout, poolings: Sequence[str]) -> dict[str, Tensor]:
    """Pool what a layer of the tower, or the connector, returned.

    The output is (P, d) flat; (tiles, …, d); or (tiles, d) where a norm is given the class token alone. Rows that hold
    padding are left out, and so are poolings that do not apply.

    Returns:
        (B, d) float32 by pooling.

    Raises:
        ModelError: the output has another length than the batch's input implies.
    """
    rows, output = layout.rows[stage], select_rows(output, layout.masks[stage])
    if sum(rows) != output.shape[0]:
        raise ModelError(
            f"{layout.family.title}: expected {sum(rows)} rows from the {stage} stage, by the batch's input, got "
            f"{output.shape[0]}; this version of transformers lays it out differently."
        )
    if layout.family.flat:
        return _pool_rows(output, rows, poolings)
    if output.dim() == 2:
        return {CLS: _mean_of_tiles(output[:, None], rows)} if CLS in poolings else {}
    output = output.flatten(1, -2)
    pooled = {}
    if stage == "vision" and (count := layout.class_tokens):
        if CLS in poolings:
            pooled[CLS] = _mean_of_tiles(output[:, :1], rows)
        output = output[:, count:]
    patches = output.shape[1]
    return pooled | _pool_rows(output.flatten(0, 1), [tiles * patches for tiles in rows], poolings)


def pool_tokens(hidden: Tensor, layout: BatchLayout, poolings: Sequence[str]) -> dict[str, Tensor]:
    """Pool what a block of the LLM returned over the prompts, (B, L, D), padded on the left.

    Returns:
        (B, D) float32 by pooling: over the image's tokens, and the last token of the prompt.
    """
    pooled = {LAST: hidden[:, -1].to(torch.float32, copy=True)} if LAST in poolings else {}
    if {MEAN, MAX} & set(poolings):
        tokens = hidden.flatten(0, 1).index_select(0, layout.positions_on(hidden.device))
        pooled |= _pool_rows(tokens, layout.tokens, poolings)
    return pooled


def _pool_rows(rows: Tensor, counts: list[int], poolings: Sequence[str]) -> dict[str, Tensor]:
    """Return the mean and maximum over each document's rows of (sum of counts, d)."""
    pooled = {}
    if len(set(counts)) == 1:
        each = rows.reshape(len(counts), counts[0], rows.shape[-1])
        if MEAN in poolings:
            pooled[MEAN] = each.mean(1, dtype=torch.float32)
        if MAX in poolings:
            pooled[MAX] = each.amax(1).float()
        return pooled
    parts = torch.split(rows, counts)
    if MEAN in poolings:
        pooled[MEAN] = torch.stack([part.mean(0, dtype=torch.float32) for part in parts])
    if MAX in poolings:
        pooled[MAX] = torch.stack([part.amax(0).float() for part in parts])
    return pooled


def _mean_of_tiles(output: Tensor, counts: list[int]) -> Tensor:
    """Return the mean over the tiles of each document, of (tiles, 1, d)."""
    return _pool_rows(output.flatten(0, 1), counts, (MEAN,))[MEAN]
