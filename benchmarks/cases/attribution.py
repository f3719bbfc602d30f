"""Gradients at several layers: one forward and one backward pass for all of them against a call of Captum for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor

from benchmarks.harness import Benchmark, Run, Sides, expect
from benchmarks.models import BATCH, QUESTION, model_of_size, phantom_images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.data.layouts.phantoms import LABELS

# Where Captum's own hooks work: at the tower's last block they come too late, since LLaVA takes what transformers
# recorded before them, and in the LLM they would meet the labels' tokens as well as the prompt's.
LAYERS = ("vision.00", "vision.01", "vision.02", "vision.03", "vision.04", "connector")
TOLERANCE = 1e-3  # of the largest value

Attributions = list[dict[str, Tensor]]
"""For each document, values by method and layer."""


def all_layers(inputs: Sequence[AttributionInput], layers: Sequence[str], steps: int) -> Attributions:
    """Attribute with this package: all layers together."""
    methods = {
        "gradient": layer_methods.layer_gradient_x_activation,
        "path": layer_methods.layer_integrated_gradients,
    }
    config = layer_methods.MethodConfig(steps=steps)
    return [
        {
            f"{name} {layer}": result.values
            for name, method in methods.items()
            for layer, result in method(example, layers, config).items()
        }
        for example in inputs
    ]


def layer_by_layer(inputs: Sequence[AttributionInput], layers: Sequence[str], steps: int) -> Attributions:
    """Attribute with Captum, called for each layer."""
    attributions = []
    for example in inputs:
        values: dict[str, Tensor] = {}

        def forward(pixels: Tensor, example: AttributionInput = example) -> Tensor:
            return example.values(len(pixels), (), pixels)

        image = example.pixels[None].detach().clone().requires_grad_()
        for layer in layers:
            module = example.layer(layer).module
            gradient = LayerGradientXActivation(forward, module).attribute(image)
            path = LayerIntegratedGradients(forward, module).attribute(
                image, example.blank_pixels[None], n_steps=steps, method=layer_methods.RULE, internal_batch_size=BATCH
            )
            for name, result in (("gradient", gradient), ("path", path)):
                rows = result[0] if isinstance(result, tuple) else result
                values[f"{name} {layer}"] = rows.detach().reshape(-1, rows.shape[-1]).float().sum(-1)
        attributions.append(values)
    return attributions


def check(ours: Attributions, baseline: Attributions) -> None:
    """Check that no value differs by more than :data:`TOLERANCE` of the largest."""
    for computed, expected in zip(ours, baseline, strict=True):
        for name, values in expected.items():
            worst = float((values - computed[name]).abs().max() / values.abs().max())
            got = f"a difference of {worst:g} of the largest value at {name}"
            expect(worst <= TOLERANCE, "the same attributions", got, "tests/attribution")


def setup(run: Run, images: int, steps: int, layers: tuple[str, ...]) -> Sides:
    """Load the demo and prepare one input for each image; the first is the warm-up."""
    model = model_of_size("tiny", run.device)
    target = Target.of_label(LABELS[0], LABELS, LABELS)
    inputs = [
        AttributionInput(model.loaded, QUESTION, picture, target, batch=BATCH) for picture in phantom_images(images)
    ]

    def warm_up() -> None:
        check(all_layers(inputs[:1], layers, steps), layer_by_layer(inputs[:1], layers, steps))

    return Sides(
        ours=partial(all_layers, inputs, layers, steps),
        baseline=partial(layer_by_layer, inputs, layers, steps),
        check=check,
        warm_up=warm_up,
    )


BENCHMARK = Benchmark(
    name="attribution",
    ours="one forward and one backward pass for all layers, one of each a step for paths",
    baseline="Captum called for each layer",
    setup=setup,
    sizes={
        "full": {"images": 4, "steps": 16, "layers": LAYERS},
        "quick": {"images": 1, "steps": 3, "layers": ("vision.02", "connector")},
    },
    targets={("full", device): 1.0 for device in ("cpu", "cuda")},
    devices=("cpu", "cuda"),
)
