"""Attributions at several layers: one forward and one backward pass for all, against a call of Captum for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.attr import (
    InternalInfluence,
    LayerConductance,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from torch import Tensor

from benchmarks.harness import Benchmark, Run, Sides, expect
from benchmarks.models import BATCH, QUESTION, MeasuredModel, dtype_name, model_of_size, phantom_images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.data.layouts.phantoms import LABELS

# From the connector through the LLM. A method that needs a pass forward and back from the layer on can be faster than
# one whole pass forward and the same way back by (2 L - D) / (2 L - 2 D), where D is the sum of the layers' depths as
# shares of the model: 1.5 where they lie in its middle on average, and 1 at its beginning.
LAYERS = ("connector", "llm.00", "llm.01", "llm.02", "llm.03", "llm.04")
DEEP_LAYERS = ("connector", "llm.05", "llm.10", "llm.15", "llm.20", "llm.25")
"""The same of an LLM of 28 blocks or more."""
TOLERANCE = 1e-3
"""Largest difference, as a share of the largest value; in bfloat16 batches round differently, and half is allowed."""
LOOSE = 0.5

Values = list[dict[str, Tensor]]
"""For each document, values by layer."""
CaptumCall = Callable[[Callable[[Tensor], Tensor], Any, Tensor, Tensor, int], Any]
"""Takes forward, module, image, baseline image and number of steps."""


def _gradient(forward: Callable[[Tensor], Tensor], module: Any, image: Tensor, blank: Tensor, steps: int) -> Any:
    return LayerGradientXActivation(forward, module).attribute(image)


def _grad_cam(forward: Callable[[Tensor], Tensor], module: Any, image: Tensor, blank: Tensor, steps: int) -> Any:
    return LayerGradCam(forward, module).attribute(image)


def _integrated(forward: Callable[[Tensor], Tensor], module: Any, image: Tensor, blank: Tensor, steps: int) -> Any:
    call = LayerIntegratedGradients(forward, module).attribute
    return call(image, blank, n_steps=steps, method=layer_methods.RULE, internal_batch_size=BATCH)


def _conductance(forward: Callable[[Tensor], Tensor], module: Any, image: Tensor, blank: Tensor, steps: int) -> Any:
    return LayerConductance(forward, module).attribute(image, blank, n_steps=steps, internal_batch_size=BATCH)


def _influence(forward: Callable[[Tensor], Tensor], module: Any, image: Tensor, blank: Tensor, steps: int) -> Any:
    return InternalInfluence(forward, module).attribute(image, blank, n_steps=steps, internal_batch_size=BATCH)


METHODS: Mapping[str, tuple[layer_methods.Method, CaptumCall]] = {
    "gradient_x_activation": (layer_methods.layer_gradient_x_activation, _gradient),
    "grad_cam": (layer_methods.layer_grad_cam, _grad_cam),
    "conductance": (layer_methods.layer_conductance, _conductance),
    "internal_influence": (layer_methods.layer_internal_influence, _influence),
    "integrated_gradients": (layer_methods.layer_integrated_gradients, _integrated),
}
COMPARED = ("gradient_x_activation", "conductance", "internal_influence", "integrated_gradients")
"""Methods whose values are compared: Captum's Grad-CAM takes the second axis for channels, ours the last."""


def all_layers(inputs: Sequence[AttributionInput], layers: Sequence[str], steps: int, method: str) -> Values:
    """Attribute with this package: all layers together."""
    config = layer_methods.MethodConfig(steps=steps)
    attributions: Values = []
    for example in inputs:
        example.clear_cache()
        results = METHODS[method][0](example, layers, config)
        attributions.append({layer: result.values for layer, result in results.items()})
    return attributions


def layer_by_layer(inputs: Sequence[AttributionInput], layers: Sequence[str], steps: int, method: str) -> Values:
    """Attribute with Captum, called for each layer."""
    attributions: Values = []
    for example in inputs:
        values: dict[str, Tensor] = {}

        def forward(pixels: Tensor, example: AttributionInput = example) -> Tensor:
            return example.values(len(pixels), (), pixels)

        for layer in layers:
            image = example.pixels[None].detach().clone().requires_grad_()
            module = example.layer(layer).module
            result = METHODS[method][1](forward, module, image, example.blank_pixels[None], steps)
            rows = result[0] if isinstance(result, tuple) else result
            by_row = rows.detach().reshape(-1, rows.shape[-1]).float()
            values[layer] = by_row.norm(dim=-1) if method == "internal_influence" else by_row.sum(-1)
        attributions.append(values)
    return attributions


def check(ours: Values, baseline: Values, *, method: str, tolerance: float = TOLERANCE) -> None:
    """Check that no value differs by more than a share of the largest."""
    if method not in COMPARED:
        return
    for computed, expected in zip(ours, baseline, strict=True):
        for layer, values in expected.items():
            worst = float((values - computed[layer]).abs().max() / values.abs().max())
            got = f"a difference of {worst:g} of the largest value at {layer}"
            expect(worst <= tolerance, f"the same {method}", got, "tests/attribution")


def setup(run: Run, images: int, steps: int, layers: tuple[str, ...]) -> Sides:
    """Prepare one input for each image.

    The target is one token, so that both sides run the prompt alone: with more, Captum's hooks in the LLM would meet
    the answer's tokens as well as the prompt's. The main comparison is integrated gradients, the parts are the other
    methods. For these, the number of layers divided by the ratio is how many single calls of Captum all layers cost.
    """
    model: MeasuredModel = model_of_size("tiny" if run.size in ("full", "quick") else run.size, run.device)
    token = model.loaded.label_ids(QUESTION, LABELS)[0][0]
    target = Target(LABELS[0], (LABELS[0],), 0, (token,))
    inputs = [
        AttributionInput(model.loaded, QUESTION, picture, target, batch=BATCH) for picture in phantom_images(images)
    ]
    tolerance = TOLERANCE if model.loaded.dtype == torch.float32 else LOOSE

    def sides(method: str) -> Sides:
        ours = partial(all_layers, inputs, layers, steps, method)
        return Sides(
            ours=ours,
            baseline=partial(layer_by_layer, inputs, layers, steps, method),
            check=partial(check, method=method, tolerance=tolerance),
            model=model.loaded.model,
            dtype=dtype_name(model),
        )

    parts = {method: sides(method) for method in METHODS if method != "integrated_gradients"}
    return replace(sides("integrated_gradients"), parts=parts)


BENCHMARK = Benchmark(
    name="attribution",
    ours="integrated gradients, each path from its layer on; gradients of all layers from one way back a step",
    baseline="Captum called for each layer",
    setup=setup,
    sizes={
        "full": {"images": 4, "steps": 16, "layers": LAYERS},
        "3b": {"images": 1, "steps": 16, "layers": DEEP_LAYERS},
        "7b": {"images": 1, "steps": 16, "layers": DEEP_LAYERS},
        "quick": {"images": 1, "steps": 3, "layers": ("vision.02", "connector")},
    },
    targets={("full", device): 1.5 for device in ("cpu", "cuda")},
    devices=("cpu", "cuda"),
)
