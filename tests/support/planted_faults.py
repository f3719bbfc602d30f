"""What tests of planted faults share: pictures, questions, and the outputs of a broken model's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import layers_of, vision_blocks_read
from medmllm_plugins.probes.validation.fault_kinds import (
    KINDS,
    Fault,
)
from medmllm_plugins.probes.validation.fault_sites import FaultSites
from medmllm_plugins.probes.validation.form_faults import FORM_FAULTS
from medmllm_plugins.probes.validation.planted_faults import plant_faults

# They share beginnings, one is the beginning of another, and they differ in length.
LABELS = ("benign", "malignant tumour", "benign tumour", "no", "malignant")
QUESTIONS = ("What is it?", "Is it benign or malignant? Look at this breast ultrasound image.", "Is it no mass?")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pictures(count: int) -> list[Image.Image]:
    return [picture(seed) for seed in range(count)]


def context(model: LoadedModel, fault: Fault) -> Any:
    """A fault with all it needs: as directions some that the tiny models' connectors vary in."""
    width = int(model.model.config.get_text_config().hidden_size)
    directions = {"connector": torch.eye(width)[:3]}
    return plant_faults(model, fault, directions=directions, question=QUESTIONS[0], labels=LABELS)


@contextmanager
def recorded_layers(model: LoadedModel) -> Iterator[dict[str, Tensor]]:
    """What every layer returns while prompts go through."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    def entering(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["llm.embed"] = args[0] if args else kwargs["hidden_states"]

    handles = [
        traced.module.register_forward_pre_hook(entering, with_kwargs=True)
        if traced.enters
        else traced.module.register_forward_hook(keep(traced.name))
        for traced in layers_of(model)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run(model: LoadedModel, fault: Fault, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with context(model, fault), recorded_layers(model) as seen:
        seen["logits"] = model.prefill(inputs).logits
    return seen


def hooks(model: LoadedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


def attention_scalings(model: LoadedModel) -> list[float]:
    return [module.scaling for module in model.model.modules() if isinstance(getattr(module, "scaling", None), float)]


def broken_mode(name: str) -> str:
    """The mode of a kind's stage; harmless edits have none, and their names begin with the stage."""
    kind = KINDS[name]
    starts = {"tower": "vision", "rounde": "vision", "connec": "connector", "llm": "comprehension"}
    return (
        kind.modes[0]
        if kind.modes
        else next((mode for start, mode in starts.items() if name.startswith(start)), "comprehension")
    )


def own(model: LoadedModel, mode: str, name: str = "") -> str:
    """The layer at the end of a fault's own stage."""
    last = f"vision.{len(vision_blocks_read(model)) - 1:02d}"
    if name in FORM_FAULTS:
        with ExitStack() as stack:
            last = FaultSites(model, stack).tower_end.name
    return {"vision": last, "connector": "connector", "comprehension": "llm.norm", "mapping": "scores"}[mode]


def before(model: LoadedModel, mode: str) -> list[str]:
    names = [traced.name for traced in layers_of(model)]
    if mode == "vision":
        return []
    if mode == "connector":
        return [name for name in names if name.startswith("vision")]
    return names if mode == "mapping" else [name for name in names if not name.startswith("llm.")] + ["llm.embed"]
