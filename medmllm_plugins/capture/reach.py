"""Which layers of the vision tower the answer depends on at all.

LLaVA and its kin take the states of an earlier layer than the last, so that what the last ones return goes nowhere. A
probe there says nothing of what the LLM was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medmllm_plugins.models.generation import prefill
from medmllm_plugins.models.interface import LoadedModel
from medmllm_plugins.models.stages import Place, places


@torch.inference_mode()
def unread(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the loci of the vision tower that the LLM never reads.

    Found by trying: what a layer returns is changed, and if the next token's logits stay the same to the last bit,
    nothing after it reads the layer. It begins at the end of the tower and stops at the first layer that is read, since
    each layer reads the one before.

    Args:
        loaded: the model.
        inputs: of a batch, best of one document.
    """
    tower = [place for place in places(loaded) if place.part == "vision"]
    usual = prefill(loaded.model, inputs).logits
    found = set()
    for place in reversed(tower):
        if not torch.equal(usual, _changed(loaded, place, inputs)):
            if place.name != "vision.norm":
                break
            continue  # a norm may be read by a part of its own; what stands before it is looked at all the same
        found.add(place.name)
    return frozenset(found)


def _changed(loaded: LoadedModel, place: Place, inputs: Mapping[str, Tensor]) -> Tensor:
    """The next token's logits, with what a layer returns changed."""
    own = place.module.__dict__.get("forward")  # accelerate puts one on a module that is spread over devices
    usual = place.module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = usual(*args, **kwargs)
        if isinstance(output, tuple):
            return (_noisy(output[0]), *output[1:])
        return _noisy(output)

    # Not by a hook: LLaVA takes its layer from states that transformers' own hooks recorded before ours would run.
    place.module.forward = changed
    try:
        return prefill(loaded.model, inputs).logits
    finally:
        del place.module.forward
        if own is not None:
            place.module.forward = own


def _noisy(output: Tensor) -> Tensor:
    # Not a constant, which a norm behind it would take away.
    ramp = torch.linspace(-1, 1, output.shape[-1], device=output.device, dtype=output.dtype)
    return output + ramp * (1 + output.abs().amax())
