"""Greedy decoding and label scores from one prefill.

The prompt and the image go through the model once (:func:`prefill`). Its KV cache serves both the scores of every
label (:func:`score_labels`, which works on a copy) and the generated text (:func:`greedy`, which uses it up), so
score first, then generate.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Prefill:
    """The state of a batch after its prompts.

    Attributes:
        logits: next-token logits after each prompt, (B, V), float32.
        cache: keys and values of all prompt positions, padding included.
        attention_mask: 1 for prompt tokens and 0 for left padding, (B, L), int64.
    """

    logits: Tensor
    cache: DynamicCache
    attention_mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Number of prompt tokens of each row, (B,), int64: the position of its next token."""
        return self.attention_mask.sum(-1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from each row's first real token, so that padding does not shift them.

    Args:
        attention_mask: (B, L), 1 for real tokens.

    Returns:
        (B, L), int64; padding has position 0, which nothing attends to.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def prefill(model: Any, inputs: Mapping[str, Tensor]) -> Prefill:
    """Run prompts and images through the model once.

    Args:
        model: a transformers image-text-to-text model in evaluation mode.
        inputs: left-padded ``input_ids`` (B, L) and ``attention_mask`` (B, L), and what else the model takes, such
            as ``pixel_values``.
    """
    mask = inputs["attention_mask"]
    cache = DynamicCache(config=model.config)
    out = model(**inputs, position_ids=position_ids(mask), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefill(out.logits[:, -1].float(), cache, mask)


@torch.no_grad()
def greedy(model: Any, start: Prefill, *, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[list[int]]:
    """Greedy decoding, equal to ``model.generate(do_sample=False)``.

    Args:
        model: the model that made ``start``.
        start: its cache is extended in place, so use it once.
        max_new_tokens: the most tokens to generate for a row.
        eos_token_ids: tokens that end a row. Rows that have ended go on unheard until all have.

    Returns:
        The tokens of each row, without the one that ended it.
    """
    eos = torch.tensor(sorted(eos_token_ids), device=start.logits.device)
    logits, mask, position = start.logits, start.attention_mask, start.lengths
    finished = torch.zeros_like(position, dtype=torch.bool)
    steps: list[Tensor] = []
    while len(steps) < max_new_tokens:
        token = logits.argmax(-1)
        steps.append(token)
        finished = finished | torch.isin(token, eos)
        if len(steps) == max_new_tokens or bool(finished.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=start.cache,
            use_cache=True,
        )
        logits, position = out.logits[:, -1].float(), position + 1
    if not steps:
        return [[] for _ in range(len(position))]
    ends = set(eos_token_ids)
    rows: list[list[int]] = torch.stack(steps, dim=1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


@torch.no_grad()
def score_labels(model: Any, start: Prefill, labels: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Log-probability of every label as the continuation of its prompt.

    The score is the sum over the label's tokens of log p(token | image, prompt, label tokens before it), in nats. The
    end-of-sequence token is not part of it, so a label that is a prefix of another never scores below it.

    Args:
        model: the model that made ``start``.
        start: left as it is; its cache is copied.
        labels: token ids of K labels for each of B rows, none of them empty.

    Returns:
        (B, K), float32.
    """
    device = start.logits.device
    rows = [ids for row in labels for ids in row]
    repeats, longest = len(rows) // len(labels), max(map(len, rows))
    targets = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=device)
    valid = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=device)

    first = start.logits.log_softmax(-1).repeat_interleave(repeats, dim=0).gather(1, targets[:, :1])
    scores = first.squeeze(1)
    if longest > 1:
        cache = copy.deepcopy(start.cache)
        cache.batch_repeat_interleave(repeats)
        mask = torch.cat([start.attention_mask.repeat_interleave(repeats, dim=0), valid[:, :-1]], dim=1)
        offsets = torch.arange(longest - 1, device=device)
        logits = model(
            input_ids=targets[:, :-1],
            attention_mask=mask,
            position_ids=start.lengths.repeat_interleave(repeats)[:, None] + offsets,
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
        # gather - logsumexp spares the (B * K, T, V) copy that log_softmax would make.
        later = logits.gather(2, targets[:, 1:, None]).squeeze(2) - logits.logsumexp(-1)
        scores = scores + later.masked_fill(valid[:, 1:] == 0, 0.0).sum(1)
    return scores.view(len(labels), repeats)
