"""One vector for each document from what a stage returns for a batch.

Sums are float32 whatever the model's dtype, and no copy of a whole stage in float32 is made where every document has as
many rows as the next, which is the usual case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.slicing import Stage, has_class_token, wrong_length
from medmllm_plugins.prompts.feature_options import CLS, LAST, MAX, MEAN


@dataclass(slots=True)
class Batch:
    """Where the documents of a batch are in what stages return.

    Attributes:
        documents: number of documents, B.
        rows: by stage, the number of rows of each document.
        tokens: number of image tokens in each document's prompt.
        where: place of each image token in the prompts laid end to end, (T,), int64; by device.
    """

    documents: int
    rows: Mapping[Stage, list[int]]
    tokens: list[int]
    where: dict[torch.device, Tensor]

    @classmethod
    def of(cls, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> Batch:
        """Work it out from a batch's input."""
        mask = loaded.image_positions(inputs)
        rows: dict[Stage, list[int]] = {part: loaded.rows_of(part, inputs) for part in ("vision", "connector")}
        where = mask.flatten().nonzero().squeeze(1)
        return cls(len(mask), rows, mask.sum(1).tolist(), {where.device: where})

    def at(self, device: torch.device) -> Tensor:
        """:attr:`where` on a device."""
        if device not in self.where:
            self.where[device] = next(iter(self.where.values())).to(device)
        return self.where[device]


def pool_images(
    loaded: LoadedModel, part: Stage, output: Tensor, batch: Batch, poolings: Sequence[str]
) -> dict[str, Tensor]:
    """Pool what a block or norm of the tower, or the connector, returned.

    Args:
        loaded: the model.
        part: ``"vision"`` or ``"connector"``.
        output: (P, d) flat, (tiles, patches, d), or (tiles, d) where a norm is given the class token alone.
        batch: of which documents.
        poolings: which are wanted; those that do not apply are left out.

    Returns:
        (B, d) float32 by pooling.

    Raises:
        ModelError: the output is not as long as the batch's input says.
    """
    rows = batch.rows[part]
    if sum(rows) != output.shape[0]:
        raise wrong_length(loaded.family, part, sum(rows), output.shape[0])
    if loaded.family.grid:
        return _over(output, rows, poolings)
    if output.dim() == 2:
        return {CLS: _mean(output[:, None], rows)} if CLS in poolings else {}
    found = {}
    if part == "vision" and has_class_token(loaded.model, output):
        if CLS in poolings:
            found[CLS] = _mean(output[:, :1], rows)
        output = output[:, 1:]
    patches = output.shape[1]
    return found | _over(output.flatten(0, 1), [count * patches for count in rows], poolings)


def pool_tokens(hidden: Tensor, batch: Batch, poolings: Sequence[str]) -> dict[str, Tensor]:
    """Pool what a block of the LLM returned over the prompts, padded on the left.

    Args:
        hidden: (B, L, D).
        batch: of which documents.
        poolings: which are wanted.

    Returns:
        (B, D) float32 by pooling: over the image's tokens, and the last token of the prompt.
    """
    found = {LAST: hidden[:, -1].to(torch.float32, copy=True)} if LAST in poolings else {}
    if {MEAN, MAX} & set(poolings):
        tokens = hidden.flatten(0, 1).index_select(0, batch.at(hidden.device))
        found |= _over(tokens, batch.tokens, poolings)
    return found


def _over(rows: Tensor, counts: list[int], poolings: Sequence[str]) -> dict[str, Tensor]:
    """Mean and maximum over each document's rows of (sum of counts, d)."""
    found = {}
    if len(set(counts)) == 1:
        each = rows.reshape(len(counts), counts[0], rows.shape[-1])
        if MEAN in poolings:
            found[MEAN] = each.mean(1, dtype=torch.float32)
        if MAX in poolings:
            found[MAX] = each.amax(1).float()
        return found
    parts = torch.split(rows, counts)
    if MEAN in poolings:
        found[MEAN] = torch.stack([part.mean(0, dtype=torch.float32) for part in parts])
    if MAX in poolings:
        found[MAX] = torch.stack([part.amax(0).float() for part in parts])
    return found


def _mean(output: Tensor, counts: list[int]) -> Tensor:
    """Mean over the tiles of each document, of (tiles, 1, d)."""
    return _over(output.flatten(0, 1), counts, (MEAN,))[MEAN]
