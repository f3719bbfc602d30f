"""Gradients at all layers: one pass and one way back for all of them against a call of Captum for each.

Both sides make gradient times activation and integrated gradients of the same documents at the same layers, by the same
target. The plain side is how Captum is used by hand: LayerGradientXActivation and LayerIntegratedGradients, a layer at
a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from PIL.Image import Image
from torch import Tensor

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import QUESTION, Subject, checkpoint, images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target as Explained
from medmllm_plugins.attribution.methods.layer_methods import (
    RULE,
    MethodConfig,
    layer_gradient_x_activation,
    layer_integrated_gradients,
)
from medmllm_plugins.data.layouts.phantoms import LABELS
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.options import resolve_device

# Where Captum's own hooks work: at the tower's last block they come too late, since LLaVA takes what transformers
# recorded before them, and in the LLM they would meet the labels' tokens as well as the prompt's.
LAYERS = ("vision.00", "vision.01", "vision.02", "vision.03", "vision.04", "connector")
STEPS = 16
BATCH = 16
IMAGES = 4
TOLERANCE = 1e-3
"""Of the largest value."""

Found = list[dict[str, Tensor]]


def cases(subject: Subject, pictures: Sequence[Image]) -> list[AttributionInput]:
    """One case for each picture."""
    target = Explained.of_label(LABELS[0], LABELS, LABELS)
    return [AttributionInput(subject.loaded, QUESTION, picture, target, batch=BATCH) for picture in pictures]


def at_once(shown: Sequence[AttributionInput]) -> Found:
    """This package: all layers together."""
    how, found = MethodConfig(steps=STEPS), []
    for case in shown:
        gradients, paths = layer_gradient_x_activation(case, LAYERS, how), layer_integrated_gradients(case, LAYERS, how)
        found.append(
            {f"gradient {layer}": one.values for layer, one in gradients.items()}
            | {f"path {layer}": one.values for layer, one in paths.items()}
        )
    return found


def one_by_one(shown: Sequence[AttributionInput]) -> Found:
    """Captum, called for each layer."""
    found = []
    for case in shown:
        told: dict[str, Tensor] = {}

        def forward(pixels: Tensor, case: AttributionInput = case) -> Tensor:
            return case.values(len(pixels), (), pixels)

        image = case.pixels[None].detach().clone().requires_grad_()
        for layer in LAYERS:
            module = case.place(layer).module
            gradient = LayerGradientXActivation(forward, module).attribute(image)
            path = LayerIntegratedGradients(forward, module).attribute(
                image, case.blank_pixels[None], n_steps=STEPS, method=RULE, internal_batch_size=BATCH
            )
            for name, one in (("gradient", gradient), ("path", path)):
                values = one[0] if isinstance(one, tuple) else one
                told[f"{name} {layer}"] = values.detach().reshape(-1, values.shape[-1]).float().sum(-1)
        found.append(told)
    return found


def check(plain: Found, fast: Found) -> None:
    """See to it that both sides computed the same.

    Raises:
        ModelError: a value differs by more than :data:`TOLERANCE` of the largest.
    """
    for one, other in zip(plain, fast, strict=True):
        for name, values in one.items():
            worst = float((values - other[name]).abs().max() / values.abs().max())
            if not worst <= TOLERANCE:
                raise ModelError(
                    f"Expected the same attributions from both sides, found a difference of {worst:g} of the largest "
                    f"at {name}: run `pytest tests/attribution`, and mend what it finds."
                )


def run(settings: Settings) -> Record:
    """Compare the two ways.

    Raises:
        OptionError: the device is not there.
        ModelError: the sides do not compute the same.
    """
    device = resolve_device(settings.device)
    shown = cases(checkpoint("demo", settings.device), images(IMAGES))
    check(one_by_one(shown[:1]), at_once(shown[:1]))
    return Record(
        settings=settings,
        sides=(
            ("one_by_one", f"Captum called for each of {len(LAYERS)} layers"),
            ("at_once", "this package: one pass and one way back for all layers, one a step for paths"),
        ),
        comparison=compare(
            stopwatch(partial(one_by_one, shown), device),
            stopwatch(partial(at_once, shown), device),
            repeats=settings.repeats,
        ),
        target=Target("at least", 1.0),
        details={
            "images": IMAGES,
            "layers": len(LAYERS),
            "steps": STEPS,
            "threads": torch.get_num_threads(),
        },
    )
