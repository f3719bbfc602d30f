"""The stages of a model in memory, by the names that curves and reports use for them.

A locus is a place in the model whose output is looked at: ``vision.00`` … for the blocks of the vision tower,
``vision.norm``, ``connector``, ``llm.embed`` for what the LLM reads (text and image tokens together), ``llm.00`` … for
its blocks, ``llm.norm``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families import stage
from medmllm_plugins.models.interface import LoadedModel

Part = Literal["vision", "connector", "llm"]
EMBED = "llm.embed"


@dataclass(frozen=True, slots=True)
class Place:
    """A locus in a model.

    Attributes:
        name: of the locus.
        part: which part of the model it belongs to.
        module: the module there.
        enters: whether what enters the module is looked at, and not what it returns.
    """

    name: str
    part: Part
    module: nn.Module
    enters: bool = False


def places(loaded: LoadedModel) -> tuple[Place, ...]:
    """All loci of a model in the order in which an image passes them.

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
    found = [Place(_numbered("vision", number), "vision", module) for number, module in enumerate(vision)]
    if known.vision_norm is not None:
        found.append(Place("vision.norm", "vision", stage(model, known.vision_norm)))
    found.append(Place("connector", "connector", stage(model, known.connector)))
    # The embedding module returns the placeholder where an image stands; the first block is given the image.
    found.append(Place(EMBED, "llm", blocks[0], enters=True))
    found += [Place(_numbered("llm", number), "llm", module) for number, module in enumerate(blocks)]
    return (*found, Place("llm.norm", "llm", stage(model, known.llm_norm)))


def _listed(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, Iterable) else []


def _numbered(part: str, number: int) -> str:
    return f"{part}.{number:02d}"
