"""Shuffle the weights of a model from the head down; maps that stay the same do not depend on the model.

After Adebayo et al., "Sanity Checks for Saliency Maps" (arXiv:1810.03292). The entries of each matrix are permuted,
which preserves their distribution and needs no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.results.attribution_records import RANDOMISATION_LEVELS

BAND: Final = 2**20
"""Largest number of entries in one random permutation."""


def can_shuffle(loaded: LoadedModel) -> bool:
    """Return whether the weights can be shuffled: those of a quantised model cannot."""
    return all(value.is_floating_point() for value in loaded.model.parameters())


@contextmanager
def cascading_randomisation(loaded: LoadedModel, seed: int = 0) -> Iterator[Iterator[str]]:
    """Shuffle the weights level by level while the context is open; they are restored exactly.

    In ``with cascading_randomisation(loaded) as levels: for level in levels: …`` the model is shuffled down to that
    level. Each matrix is shuffled once and restored once.
    """
    head: Any = stage_module(loaded.model, loaded.family.head)
    own_weight = head.weight
    # The head may share its matrix with the embeddings, which stay as they are.
    head.weight = nn.Parameter(own_weight.detach().clone(), requires_grad=False)
    shuffled: list[tuple[Tensor, int]] = []

    def levels() -> Iterator[str]:
        for level, matrices in _matrices(loaded).items():
            for value in matrices:
                _shuffle(value, seed + len(shuffled), back=False)
                shuffled.append((value, seed + len(shuffled)))
            yield level

    try:
        yield levels()
    finally:
        for value, number in reversed(shuffled):
            _shuffle(value, number, back=True)
        head.weight = own_weight


def _matrices(loaded: LoadedModel) -> dict[str, list[Tensor]]:
    """Return the matrices of each level, each once, starting with the head."""
    layers = [layer for layer in layers_of(loaded) if not layer.enters]
    llm = [layer.module for layer in layers if layer.part == "llm"]
    modules: dict[str, list[nn.Module]] = {
        "head": [stage_module(loaded.model, loaded.family.head)],
        "upper LLM": llm[len(llm) // 2 :],
        "LLM": llm[: len(llm) // 2],
        "connector": [layer.module for layer in layers if layer.part == "connector"],
        "tower": [layer.module for layer in layers if layer.part == "vision"],
    }
    matrices: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for level in RANDOMISATION_LEVELS:
        own = {id(value): value for module in modules[level] for value in module.parameters() if value.dim() > 1}
        matrices[level] = [value for name, value in own.items() if name not in seen]
        seen |= own.keys()
    return matrices


@torch.no_grad()
def _shuffle(value: Tensor, seed: int, *, back: bool) -> None:
    """Permute the entries of a matrix within bands of rows, and the bands among each other; ``back`` inverts it.

    A matrix of up to :data:`BAND` entries is one band. In a larger one all bands are permuted alike: a permutation of
    all entries would take minutes, and four times the memory of the matrix.
    """
    rows, width = value.shape[0], value[0].numel()
    high = max(size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * width <= BAND))
    generator = torch.Generator().manual_seed(seed)
    bands, order = (torch.randperm(count, generator=generator) for count in (rows // high, high * width))
    if back:
        bands, order = bands.argsort(), order.argsort()
    flat = value.detach().reshape(len(bands), -1)
    mixed = flat.index_select(0, bands.to(value.device)).index_select(1, order.to(value.device))
    value.copy_(mixed.view_as(value))
