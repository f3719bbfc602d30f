"""The model with its weights shuffled from the head down: maps that stay the same then tell nothing of it.

After Adebayo et al., "Sanity Checks for Saliency Maps" (arXiv:1810.03292). Entries of each matrix change places, so
that their distribution is kept and no second copy of the weights is needed.
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

LEVELS: Final = ("head", "upper LLM", "LLM", "connector", "tower")
"""What is shuffled, one after the other; each level keeps those before it shuffled."""
BAND: Final = 2**20
"""Entries of a matrix that are shuffled in one order of their own."""


def can_shuffle(loaded: LoadedModel) -> bool:
    """Whether the weights can be shuffled: those of a quantised model cannot."""
    return all(value.is_floating_point() for value in loaded.model.parameters())


@contextmanager
def cascading_randomisation(loaded: LoadedModel, seed: int = 0) -> Iterator[Iterator[str]]:
    """Shuffle the weights level by level while the context is open; they are put back to the last bit.

    ``with cascade(loaded) as levels: for level in levels: …`` sees the model with all shuffled down to that level. A
    matrix is shuffled once on the way down, and once put back at the end.

    Args:
        loaded: the model, its weights floating-point numbers.
        seed: of the shuffling.
    """
    head: Any = stage_module(loaded.model, loaded.family.head)
    own = head.weight
    # The head may share its matrix with the embeddings, which are to stay.
    head.weight = nn.Parameter(own.detach().clone(), requires_grad=False)
    done: list[tuple[Tensor, int]] = []

    def levels() -> Iterator[str]:
        for level, matrices in _matrices(loaded).items():
            for value in matrices:
                _shuffle(value, seed + len(done), back=False)
                done.append((value, seed + len(done)))
            yield level

    try:
        yield levels()
    finally:
        for value, number in reversed(done):
            _shuffle(value, number, back=True)
        head.weight = own


def _matrices(loaded: LoadedModel) -> dict[str, list[Tensor]]:
    """The matrices of each level, each once, from the head on."""
    found = [place for place in layers_of(loaded) if not place.enters]
    llm = [place.module for place in found if place.part == "llm"]
    modules: dict[str, list[nn.Module]] = {
        "head": [stage_module(loaded.model, loaded.family.head)],
        "upper LLM": llm[len(llm) // 2 :],
        "LLM": llm[: len(llm) // 2],
        "connector": [place.module for place in found if place.part == "connector"],
        "tower": [place.module for place in found if place.part == "vision"],
    }
    wanted: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for level in LEVELS:
        own = {id(value): value for module in modules[level] for value in module.parameters() if value.dim() > 1}
        wanted[level] = [value for name, value in own.items() if name not in seen]
        seen |= own.keys()
    return wanted


@torch.no_grad()
def _shuffle(value: Tensor, seed: int, *, back: bool) -> None:
    """Entries of a matrix change places: within bands of rows, and the bands among each other.

    A matrix of up to :data:`BAND` entries is one band, and so shuffled at will. Of a larger one all bands are shuffled
    alike: an order of all its entries would be drawn for minutes, and take four times the memory of the matrix.
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
