"""Greedy decoding and label scores from one prefill.

The prompt and the image go through the model once (:func:`prefill`). Its KV cache serves both the scores of every
label (:func:`score_labels`, which leaves it as it is) and the generated text (:func:`greedy`, which uses it up), so
score first, then generate. Nothing here switches gradients off but the decoding, so that attributions run the very
same code; :meth:`medmllm_plugins.models.base.LoadedModel.generate` does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from medmllm_plugins.models.cache_layers import chosen_rows, is_recurrent, is_sliding, own_copies
from medmllm_plugins.models.families.family import Family


@dataclass(frozen=True, slots=True)
class Prefill:
    """The state of a batch after its prompts.

    Attributes:
        logits: next-token logits after each prompt, (B, V), float32.
        cache: keys and values of all prompt positions, padding included.
        attention_mask: 1 for prompt tokens and 0 for left padding, (B, L), int64.
        next_position: the position of each row's next token, (B,), int64; not the number of its prompt tokens where
            an image takes fewer positions than tokens, as in Qwen2-VL.
    """

    logits: Tensor
    cache: DynamicCache
    attention_mask: Tensor
    next_position: Tensor


def prefill(model: Any, family: Family, inputs: Mapping[str, Tensor]) -> Prefill:
    """Run prompts and images through the model once.

    ``inputs`` are left-padded ``input_ids`` and ``attention_mask``, (B, L), and what else the model takes.

    Raises:
        ModelError: the family needs an input that is missing.
    """
    cache = DynamicCache(config=model.config)
    output, next_position = family.forward_prompt(
        model, inputs, **cache_option(model, cache), use_cache=True, logits_to_keep=1
    )
    return Prefill(output.logits[:, -1].float(), cache, inputs["attention_mask"], next_position)


def cache_option(model: Any, cache: DynamicCache) -> dict[str, DynamicCache]:
    """Return the cache under the name that the model's class has for it: transformers 5.24 renamed the argument."""
    kind: Any = type(model)
    return {_cache_argument(kind): cache}


@functools.lru_cache
def _cache_argument(model_class: Any) -> str:
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


@torch.no_grad()
def greedy(model: Any, start: Prefill, *, max_new_tokens: int, eos_token_ids: Collection[int]) -> list[list[int]]:
    """Decode greedily, equal to ``model.generate(do_sample=False)``.

    ``start`` is what :func:`prefill` returned for the model; its cache is extended in place, so use it once.

    Returns:
        The tokens of each row, without the one that ended it.
    """
    if max_new_tokens == 0:
        return [[] for _ in range(len(start.logits))]
    eos = torch.tensor(sorted(eos_token_ids), device=start.logits.device)
    cache, logits, mask, position = start.cache, start.logits, start.attention_mask, start.next_position
    rows: list[list[int]] = [[] for _ in range(len(logits))]
    active = torch.arange(len(logits), device=logits.device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        going = ~torch.isin(token, eos)
        for index, number, continues in zip(active.tolist(), token.tolist(), going.tolist(), strict=True):
            if continues:
                rows[index].append(number)
        if step + 1 == max_new_tokens or not bool(going.any()):
            break
        if not bool(going.all()):  # rows that have ended are not computed any more
            alive = going.nonzero().squeeze(1)
            cache = chosen_rows(cache, alive)
            active, token, mask, position = active[alive], token[alive], mask[alive], position[alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            **cache_option(model, cache),
            use_cache=True,
        )
        logits, position = out.logits[:, -1].float(), position + 1
    return rows


def first_token(model: Any, start: Prefill) -> None:
    """Run the likeliest first token of each answer through the model, for its hooks; ``start`` is left as it is."""
    mask = start.attention_mask
    model(
        input_ids=start.logits.argmax(-1)[:, None],
        attention_mask=torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        position_ids=start.next_position[:, None],
        **cache_option(model, own_copies(start.cache)),
        use_cache=True,
    )


def score_labels(
    model: Any, start: Prefill, labels: Sequence[Sequence[Sequence[int]]], *, prefix_length: int = 0
) -> Tensor:
    """Return the log-probability of every label as the continuation of its prompt.

    The score is the sum over the label's tokens of log p(token | image, prompt, label tokens before it), in nats. The
    end-of-sequence token is not part of it, so a label that is a prefix of another never scores below it.

    The labels of a row form a tree whose branches are what labels begin with in common. Its inner nodes go through the
    model as one sequence, in which each sees the prompt and those above it, so that a token that labels share is
    computed once and the cache is neither copied nor repeated. Where the attention kernel takes no such mask, a window
    of attention would slide past the prompt, or blocks have linear attention, each label is a row of its own.

    Args:
        model: the model that made ``start``.
        start: left as it is.
        labels: token ids of K labels for each of B rows, none of them empty.
        prefix_length: number of tokens at the beginning of each label that are not scored, such as an opening tag.

    Returns:
        (B, K), float32.
    """
    if _takes_masks(model, start, max(len(ids) for row in labels for ids in row)):
        return _score_tree(model, start, labels, prefix_length)
    return _score_rows(model, start, labels, prefix_length)


def _takes_masks(model: Any, start: Prefill, longest: int) -> bool:
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    layers: Any = start.cache.layers
    if any(map(is_recurrent, layers)):  # a branch of labels would change the state that the next one begins with
        return False
    windows = [layer.sliding_window for layer in layers if is_sliding(layer)]
    return all(start.attention_mask.shape[1] + longest <= window for window in windows)


@dataclass(frozen=True, slots=True)
class _Tree:
    """The tree of what the labels of one row begin with: inner nodes, each after its parent.

    Attributes:
        tokens: token of each node.
        parents: index of the node above, -1 for the prompt.
        paths: for each label, the nodes that its tokens are predicted from: -1, then the node of its first token, ….
    """

    tokens: list[int]
    parents: list[int]
    paths: list[list[int]]


def _tree(labels: Sequence[Sequence[int]]) -> _Tree:
    tokens: list[int] = []
    parents: list[int] = []
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for ids in labels:
        path = [-1]
        for token in ids[:-1]:  # nothing is predicted from a label's last token
            key = (path[-1], token)
            if key not in nodes:
                nodes[key] = len(tokens)
                tokens.append(token)
                parents.append(path[-1])
            path.append(nodes[key])
        paths.append(path)
    return _Tree(tokens, parents, paths)


def logits_after(model: Any, start: Prefill, continuations: Sequence[Sequence[int]]) -> Tensor:
    """Return the next token's logits after each of K continuations of one prompt, computed together.

    Args:
        model: the model that made ``start``.
        start: the state after one prompt; left as it is.
        continuations: token ids; those of an empty one are the logits after the prompt.

    Returns:
        (K, V), float32.
    """
    rows = [[*ids, 0] for ids in continuations]  # nothing is predicted from the last token of a row
    if _takes_masks(model, start, max(map(len, rows))):
        (tree,), logits = _tree_logits(model, start, [rows], [0])
        return logits[0, [path[-1] + 1 for path in tree.paths]]
    targets, valid = _padded(rows, start.logits.device)
    logits = torch.cat([start.logits[:, None].expand(len(rows), -1, -1), _row_logits(model, start, targets, valid)], 1)
    return logits[torch.arange(len(rows)), valid.sum(1) - 1]


def _tree_logits(
    model: Any, start: Prefill, kinds: Collection[Sequence[Sequence[int]]], kind_of: Sequence[int]
) -> tuple[list[_Tree], Tensor]:
    """Run the inner nodes of trees of labels through the model.

    Args:
        model: the model.
        start: the state after B prompts.
        kinds: different lists of labels.
        kind_of: which of these each prompt has.

    Returns:
        The tree of each kind; and the logits after each prompt and at each node, (B, 1 + nodes, V) float32.
    """
    device = start.logits.device
    trees = [_tree(row) for row in kinds]
    width = max(len(tree.tokens) for tree in trees)
    logits = start.logits[:, None]
    if not width:
        return trees, logits
    tokens = torch.zeros(len(trees), width, dtype=torch.long)
    depth = torch.zeros(len(trees), width, dtype=torch.long)
    above = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for kind, tree in enumerate(trees):
        tokens[kind, : len(tree.tokens)] = torch.tensor(tree.tokens, dtype=torch.long)
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                depth[kind, node] = depth[kind, parent] + 1
                above[kind, node] |= above[kind, parent]
    chosen = torch.tensor(kind_of)
    prompt = start.attention_mask.bool()[:, None].expand(-1, width, -1)
    seen = torch.cat([prompt, above[chosen].to(device)], dim=-1)[:, None]
    dtype = model.dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    out = model(
        input_ids=tokens[chosen].to(device),
        attention_mask=mask,
        position_ids=start.next_position[:, None] + depth[chosen].to(device),
        **cache_option(model, own_copies(start.cache)),
        use_cache=True,
    )
    return trees, torch.cat([logits, out.logits.float()], dim=1)


def _score_tree(model: Any, start: Prefill, labels: Sequence[Sequence[Sequence[int]]], prefix_length: int) -> Tensor:
    device = start.logits.device
    # Most batches ask one question: its labels are laid out once.
    kinds: dict[tuple[tuple[int, ...], ...], int] = {}
    kind_of = [kinds.setdefault(tuple(map(tuple, row)), len(kinds)) for row in labels]
    trees, logits = _tree_logits(model, start, kinds, kind_of)
    scores = torch.zeros(len(labels), len(labels[0]), device=device)
    norms = logits.logsumexp(-1)
    for row, tree, kind in zip(kinds, trees, range(len(trees)), strict=True):
        members = torch.tensor([index for index, own in enumerate(kind_of) if own == kind], device=device)
        # Node -1 is the prompt, which comes first. All tokens of all labels are looked up at once.
        where = [
            (label, node + 1, token)
            for label, (path, ids) in enumerate(zip(tree.paths, row, strict=True))
            for node, token in list(zip(path, ids, strict=True))[prefix_length:]
        ]
        columns, nodes, wanted = torch.tensor(where, device=device).T
        # gather - logsumexp spares the copy of all logits that log_softmax would make.
        log_p = logits[members[:, None], nodes, wanted] - norms[members[:, None], nodes]
        scores[members] = torch.zeros(len(members), len(row), device=device).index_add(1, columns, log_p)
    return scores


def _score_rows(model: Any, start: Prefill, labels: Sequence[Sequence[Sequence[int]]], prefix_length: int) -> Tensor:
    rows = [ids for row in labels for ids in row]
    repeats = len(rows) // len(labels)
    targets, valid = _padded(rows, start.logits.device)
    scored = valid.clone()
    scored[:, :prefix_length] = 0

    first = start.logits.log_softmax(-1).repeat_interleave(repeats, dim=0).gather(1, targets[:, :1])
    scores = first.squeeze(1) * scored[:, 0]
    if targets.shape[1] > 1:
        logits = _row_logits(model, start, targets, valid)
        later = logits.gather(2, targets[:, 1:, None]).squeeze(2) - logits.logsumexp(-1)
        scores = scores + later.masked_fill(scored[:, 1:] == 0, 0.0).sum(1)
    return scores.view(len(labels), repeats)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows of tokens padded on the right, and which are tokens: (n, T) int64 each."""
    longest = max(map(len, rows))
    targets = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=device)
    return targets, torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=device)


def _row_logits(model: Any, start: Prefill, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the logits at all but the last of T tokens of rows, each a continuation of its prompt, (n, T - 1, V)."""
    repeats, steps = len(targets) // len(start.logits), targets.shape[1] - 1
    if not steps:
        return start.logits.new_zeros(len(targets), 0, start.logits.shape[-1])
    cache = chosen_rows(start.cache, torch.arange(len(start.logits)).repeat_interleave(repeats))
    logits: Tensor = model(
        input_ids=targets[:, :-1],
        attention_mask=torch.cat([start.attention_mask.repeat_interleave(repeats, dim=0), valid[:, :-1]], dim=1),
        position_ids=start.next_position.repeat_interleave(repeats)[:, None]
        + torch.arange(steps, device=targets.device),
        **cache_option(model, cache),
        use_cache=True,
    ).logits
    return logits.float()
