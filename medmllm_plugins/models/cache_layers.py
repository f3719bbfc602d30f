"""Rows of a cache: copies that grow on their own, repeated and chosen rows, in every kind of layer.

transformers does this for keys and values alone. A layer of linear attention (Qwen3.5) keeps a state in their place,
which it also overwrites as the sequence grows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, cache_utils

_Linear: Any = getattr(cache_utils, "LinearAttentionLayer", object)
"""The layer of linear attention, which older versions of transformers do not have."""


def is_recurrent(layer: Any) -> bool:
    """Return whether a layer keeps a state that is overwritten, from which no earlier one can be taken."""
    return hasattr(layer, "recurrent_states")


def is_sliding(layer: Any) -> bool:
    """Return whether a layer keeps the last keys and values only."""
    return bool(getattr(layer, "is_sliding", False))  # that of a block which reads another one's has no such attribute


def has_keys(layer: Any) -> bool:
    """Return whether a layer keeps keys and values."""
    return isinstance(getattr(layer, "keys", None), Tensor)


class _ReplacedStates(_Linear):  # type: ignore[misc]
    """A layer of linear attention whose states are replaced and never overwritten.

    So they can be shared by copies, and gradients can be taken through them.
    """

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Keep the last of the earlier and the new columns, and return all."""
        before: Tensor | None = self.conv_states[state_idx]
        if before is None:
            whole: Tensor = super().update_conv_state(conv_states, state_idx, **options)
            return whole
        whole = torch.cat([before, conv_states], dim=-1)
        self.conv_states[state_idx] = whole[..., -before.shape[-1] :]
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Keep the new state."""
        if self.recurrent_states[state_idx] is None:
            first: Tensor = super().update_recurrent_state(recurrent_states, state_idx, **options)
            return first
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


def own_copy(layer: Any) -> Any:
    """Return a layer that can grow on its own; tensors are shared, since growing makes new ones."""
    copied = copy.copy(layer)
    if is_recurrent(layer):
        if type(layer) is _Linear:
            copied.__class__ = _ReplacedStates
        for name, value in vars(layer).items():
            if isinstance(value, dict):  # by number of the state: tensors, and what is known of them
                setattr(copied, name, dict(value))
        # A step of a single token writes into these, whatever the layer does.
        copied.conv_states = {
            number: state.clone() if _is_tensor(state) else state for number, state in layer.conv_states.items()
        }
    return copied


class PairedCache(DynamicCache):
    """The cache of one model, and that of another one, which goes through the same changes."""

    def __init__(self, own: DynamicCache, other: DynamicCache) -> None:
        super().__init__()
        self.layers = [own_copy(layer) for layer in own.layers]
        self.other = own_copies(other)


def own_copies(cache: DynamicCache) -> DynamicCache:
    """Return a cache that can grow on its own."""
    if isinstance(cache, PairedCache):
        return PairedCache(cache, cache.other)
    copied = copy.copy(cache)
    copied.layers = [own_copy(layer) for layer in cache.layers]
    return copied


def chosen_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a cache of some rows of the batch, each as often as it is named.

    Args:
        cache: left as it is.
        rows: int64 indices.
    """
    chosen = own_copies(cache)
    if isinstance(chosen, PairedCache):
        chosen.other = chosen_rows(chosen.other, rows)
    for layer in chosen.layers:
        _change(layer, [layer], lambda parts: parts[0][rows.to(parts[0].device)])
    return chosen


def joined_rows(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Return one cache of the rows of several, whose prompts are equally long."""
    joined = own_copies(caches[0])
    for index, layer in enumerate(joined.layers):
        _change(layer, [cache.layers[index] for cache in caches], torch.cat)
    return joined


def _change(layer: Any, sources: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> None:
    """Set the tensors of a layer to what a function makes of the same tensors of some layers."""
    if has_keys(layer):
        layer.keys, layer.values = (
            change([getattr(source, name) for source in sources]) for name in ("keys", "values")
        )
    if is_recurrent(layer):
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name)
            for number in [number for number, state in states.items() if _is_tensor(state)]:
                states[number] = change([getattr(source, name)[number] for source in sources])


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
