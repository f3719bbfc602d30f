"""Choose a penalty on the validation fold by the one-standard-error rule, unless it leaves nothing but the majority.

Source: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3 (the rule).
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""Balanced accuracies that differ by less are equal."""
_TINY = 1e-30
"""In place of a share of zero."""


def choose_strength(log_p: Tensor, labels: Tensor, group: Tensor, frequencies: Tensor) -> Tensor:
    """Choose one of G strengths for each layer and label set.

    Of the strengths whose log loss is within one standard error of the lowest, the choice is the most regularised that
    beats the majority; if none does, it is the one with the lowest loss. The standard error is that of the paired
    difference to the lowest, with the documents of a group summed. A probe beats the majority if its log loss is below
    that of the frequencies of the train labels, and its balanced accuracy above that of predicting one class.

    Args:
        log_p: (L, P, G, V, K) log probabilities of V validation documents, strengths from stiff to free.
        labels: (P, V) int64 classes of the documents, from 0 to K - 1.
        group: (V,) int64 groups of the documents, numbered from 0.
        frequencies: (P, K) frequencies of the classes in the train labels, of any sum.

    Returns:
        (L, P) int64, indices of strengths.
    """
    index = labels[None, :, None, :, None].expand(*log_p.shape[:-1], 1)
    losses = -log_p.gather(-1, index).squeeze(-1)
    mean = losses.mean(-1)  # (L, P, G)
    best = mean.argmin(-1, keepdim=True)
    excess = mean - mean.gather(-1, best)
    differences = losses - losses.gather(-2, best[..., None].expand(*best.shape, losses.shape[-1]))
    by_group = torch.zeros(*mean.shape, int(group.max()) + 1, dtype=losses.dtype, device=losses.device)
    by_group.index_add_(-1, group, differences - excess[..., None])
    groups = by_group.shape[-1]
    error = (by_group.square().sum(-1) * groups / max(1, groups - 1)).sqrt() / losses.shape[-1]

    majority = -(frequencies / frequencies.sum(-1, keepdim=True)).clamp_min(_TINY).log().gather(-1, labels).mean(-1)
    members = torch.nn.functional.one_hot(labels, log_p.shape[-1]).to(losses.dtype)
    counts = members.sum(1)  # (P, K)
    hits = (log_p.argmax(-1) == labels[:, None]).to(losses.dtype)
    recalls = torch.einsum("lpgv,pvk->lpgk", hits, members) / counts.clamp_min(1)[:, None]
    chance = 1 / (counts > 0).sum(-1)
    balanced = recalls.sum(-1) * chance[:, None]
    beats = (mean < majority[:, None]) & (balanced > chance[:, None] + _ROUNDING)

    suitable = (excess <= error) & beats
    return suitable.int().argmax(-1).where(suitable.any(-1), best.squeeze(-1))
