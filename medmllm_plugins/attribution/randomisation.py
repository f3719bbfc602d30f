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

from medmllm_plugins.models.families import stage
from medmllm_plugins.models.interface import LoadedModel
from medmllm_plugins.models.stages import places

LEVELS: Final = ("head", "upper LLM", "LLM", "connector", "tower")
"""What is shuffled, one after the other; each level keeps those before it shuffled."""


def possible(loaded: LoadedModel) -> bool:
    """Whether the weights can be shuffled: those of a quantised model cannot."""
    return all(value.is_floating_point() for value in loaded.model.parameters())


@contextmanager
def shuffled(loaded: LoadedModel, level: str, seed: int = 0) -> Iterator[None]:
    """Shuffle the weights down to a level while the context is open; they are put back to the last bit.

    Args:
        loaded: the model, its weights floating-point numbers.
        level: one of :data:`LEVELS`.
        seed: of the shuffling.
    """
    head: Any = stage(loaded.model, loaded.family.head)
    own = head.weight
    # The head may share its matrix with the embeddings, which are to stay.
    head.weight = nn.Parameter(own.detach().clone(), requires_grad=False)
    done: list[tuple[Tensor, int]] = []
    try:
        for number, value in enumerate(_matrices(loaded, level)):
            _shuffle(value, seed + number, back=False)
            done.append((value, seed + number))
        yield
    finally:
        for value, number in reversed(done):
            _shuffle(value, number, back=True)
        head.weight = own


def _matrices(loaded: LoadedModel, level: str) -> list[Tensor]:
    """All matrices down to a level, each once, from the head on."""
    found = [place for place in places(loaded) if not place.enters]
    llm = [place.module for place in found if place.part == "llm"]
    modules: dict[str, list[nn.Module]] = {
        "head": [stage(loaded.model, loaded.family.head)],
        "upper LLM": llm[len(llm) // 2 :],
        "LLM": llm[: len(llm) // 2],
        "connector": [place.module for place in found if place.part == "connector"],
        "tower": [place.module for place in found if place.part == "vision"],
    }
    wanted: dict[int, Tensor] = {}
    for name in LEVELS[: LEVELS.index(level) + 1]:
        for module in modules[name]:
            wanted |= {id(value): value for value in module.parameters() if value.dim() > 1}
    return list(wanted.values())


@torch.no_grad()
def _shuffle(value: Tensor, seed: int, *, back: bool) -> None:
    order = torch.randperm(value.numel(), generator=torch.Generator().manual_seed(seed)).to(value.device)
    flat = value.detach().reshape(-1)
    if back:
        mixed = torch.empty_like(flat)
        mixed[order] = flat
    else:
        mixed = flat[order]
    value.copy_(mixed.view_as(value))
