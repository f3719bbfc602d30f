"""The stages of a model in memory, by the names that curves and reports use for them.

A layer is a place in the model whose output is looked at: ``vision.00`` … for the blocks of the vision tower,
``vision.norm``, ``connector``, ``llm.embed`` for what the LLM reads (text and image tokens together), ``llm.00`` … for
its blocks, ``llm.norm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family_registry import stage

Part = Literal["vision", "connector", "llm"]
EMBED = "llm.embed"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in a model.

    Attributes:
        name: of the layer.
        part: which part of the model it belongs to.
        module: the module there.
        enters: whether what enters the module is looked at, and not what it returns.
    """

    name: str
    part: Part
    module: nn.Module
    enters: bool = False


def layers_of(loaded: LoadedModel) -> tuple[Layer, ...]:
    """All layers of a model in the order in which an image passes them.

    Raises:
        ModelError: the model has no module where its family's table says one stands.
    """
    known, model = loaded.family, loaded.model
    vision, blocks = _listed(stage(model, known.vision_blocks)), _listed(stage(model, known.llm_blocks))
    if not vision or not blocks:
        raise ModelError(
            f"{known.title}: expected blocks at {known.vision_blocks} and {known.llm_blocks}, found {len(vision)} and "
            f"{len(blocks)}."
        )
    found = [Layer(_numbered("vision", number), "vision", module) for number, module in enumerate(vision)]
    if known.vision_norm is not None:
        found.append(Layer("vision.norm", "vision", stage(model, known.vision_norm)))
    found.append(Layer("connector", "connector", stage(model, known.connector)))
    # The embedding module returns the placeholder where an image stands; the first block is given the image.
    found.append(Layer(EMBED, "llm", blocks[0], enters=True))
    found += [Layer(_numbered("llm", number), "llm", module) for number, module in enumerate(blocks)]
    return (*found, Layer("llm.norm", "llm", stage(model, known.llm_norm)))


@contextmanager
def changed(place: Layer, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what a layer holds, or look at it, while the context is open.

    Args:
        place: the layer.
        change: takes what stands there, in the shape that the model gives it, and returns what is to stand there.

    Raises:
        ModelError: the module returns no tensor, or is called without one.
    """
    module = place.module
    own = module.__dict__.get("forward")  # accelerate puts one on a module that is spread over devices
    usual = module.forward

    def entering(*args: Any, **kwargs: Any) -> Any:
        if args:
            return usual(change(_tensor(place, args[0])), *args[1:], **kwargs)
        return usual(**{**kwargs, "hidden_states": change(_tensor(place, kwargs.get("hidden_states")))})

    def leaving(*args: Any, **kwargs: Any) -> Any:
        output = usual(*args, **kwargs)
        if isinstance(output, tuple):
            return (change(_tensor(place, output[0])), *output[1:])
        return change(_tensor(place, output))

    # Not by a hook: LLaVA takes its layer from states that transformers' own hooks recorded before ours would run.
    module.forward = entering if place.enters else leaving
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _tensor(place: Layer, found: object) -> Tensor:
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{place.name}: expected the stage to hold a tensor, found {type(found).__name__}; this version of "
            "transformers lays the model out differently."
        )
    return found


def _listed(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, Iterable) else []


def _numbered(part: str, number: int) -> str:
    return f"{part}.{number:02d}"
