"""The model that ships with this package, and the phantoms that it can classify."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.layouts.phantoms import LABELS, phantom
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions

QUESTION = f"Which is shown: {', '.join(LABELS)}?"


@dataclass(frozen=True, slots=True)
class Phantom:
    """A drawn image.

    Attributes:
        image: the RGB image.
        label: its class, one of :data:`~medmllm_plugins.data.layouts.phantoms.LABELS`.
        mask: (h, w) bool, the lesion.
    """

    image: Image.Image
    label: str
    mask: npt.NDArray[np.bool_]


def load_demo() -> LoadedModel:
    """Load the demo on the CPU in float32, which takes a third of a second."""
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


@functools.cache
def phantoms(count: int, first: int = 2800) -> tuple[Phantom, ...]:
    """Return phantoms with a lesion; the same in every call."""
    drawn: list[Phantom] = []
    number = first
    while len(drawn) < count:
        item = phantom(number)
        number += 1
        if item.mask.any():
            drawn.append(Phantom(Image.fromarray(item.image).convert("RGB"), item.label, item.mask))
    return tuple(drawn)
