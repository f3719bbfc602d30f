"""Layers of the vision tower on which the answer does not depend.

LLaVA and similar models read an earlier layer than the last, so that the last ones have no effect. A probe there says
nothing about what the LLM receives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import changed, layers_of

THRESHOLD: Final = 1e-3
"""Share of the largest state by which a state must move; smaller changes are the rounding of sums on a GPU."""


@torch.no_grad()
def unused_layers(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the layers of the vision tower that do not reach the LLM, tried on one document's inputs.

    Each layer's output is changed strongly, from the end of the tower on; if the states at the end of the LLM, those
    of the image tokens among them, stay the same, the layer is unused. The search stops at the first layer that is
    used, since each layer reads the one before. Where no layer at all is used, the image is lost between tower and
    LLM, and no single layer can be blamed: none is returned.
    """
    tower = [layer for layer in layers_of(loaded) if layer.part == "vision"]
    usual = _final_states(loaded, inputs)
    unused: set[str] = set()
    for layer in reversed(tower):
        with changed(layer, _perturb):
            states = _final_states(loaded, inputs)
        if float((states - usual).abs().max()) > THRESHOLD * float(usual.abs().max()):
            if layer.name != "vision.norm":
                return frozenset(unused)
            continue  # a norm may be read by a branch of its own; the blocks before it are tried all the same
        unused.add(layer.name)
    return frozenset()


def _final_states(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the states of all prompt tokens after the LLM's last norm, (B, L, D) float32."""
    states: list[Tensor] = []
    handle = layers_of(loaded)[-1].module.register_forward_hook(lambda _, __, output: states.append(output.float()))
    try:
        loaded.prefill(inputs)
    finally:
        handle.remove()
    return states[0]


def _perturb(output: Tensor) -> Tensor:
    # Not a constant, which a norm after it would remove.
    ramp = torch.linspace(-1, 1, output.shape[-1], device=output.device, dtype=output.dtype)
    return output + ramp * (1 + output.abs().amax())
