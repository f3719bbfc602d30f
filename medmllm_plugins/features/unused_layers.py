"""Which layers of the vision tower the answer depends on at all.

LLaVA and its kin take the states of an earlier layer than the last, so that what the last ones return goes nowhere. A
probe there says nothing of what the LLM was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.generation import prefill
from medmllm_plugins.models.stages import changed, layers_of

NOTICED: Final = 1e-3
"""Share of the largest state by which a state must move; less is the order in which a GPU adds."""


@torch.no_grad()
def unused_layers(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the layers of the vision tower that the LLM never reads.

    Found by trying: what a layer returns is changed by much, and if the states at the end of the LLM, those of the
    image tokens among them, stay the same, nothing after it reads the layer. It begins at the end of the tower and
    stops at the first layer that is read, since each layer reads the one before. Where no layer at all is read, the
    image is lost between tower and LLM, and nothing can be said of single layers: none is returned.

    Args:
        loaded: the model.
        inputs: of a batch, best of one document.
    """
    tower = [place for place in layers_of(loaded) if place.part == "vision"]
    usual = _states(loaded, inputs)
    found: set[str] = set()
    for place in reversed(tower):
        with changed(place, _noisy):
            states = _states(loaded, inputs)
        if float((states - usual).abs().max()) > NOTICED * float(usual.abs().max()):
            if place.name != "vision.norm":
                return frozenset(found)
            continue  # a norm may be read by a part of its own; what stands before it is looked at all the same
        found.add(place.name)
    return frozenset()


def _states(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """States of all prompt tokens behind the LLM's last norm, (B, L, D) float32."""
    seen: list[Tensor] = []
    handle = layers_of(loaded)[-1].module.register_forward_hook(lambda _, __, output: seen.append(output.float()))
    try:
        prefill(loaded.model, inputs)
    finally:
        handle.remove()
    return seen[0]


def _noisy(output: Tensor) -> Tensor:
    # Not a constant, which a norm behind it would take away.
    ramp = torch.linspace(-1, 1, output.shape[-1], device=output.device, dtype=output.dtype)
    return output + ramp * (1 + output.abs().amax())
