"""Attribution methods at the layers of a model, most of them Captum's, behind one signature.

A method takes a :class:`~medmllm_plugins.attribution.attribution_input.AttributionInput`, the names of layers and a
:class:`MethodConfig`; it returns :class:`Scores` for each layer. Gradients of all layers come from one forward and one
backward pass per step. A plugin adds methods through the hook ``medmllm_attributions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from captum.attr import FeatureAblation, IntegratedGradients
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import (
    ActivationGradients,
    AttributionInput,
    translated_gradient_errors,
)
from medmllm_plugins.models.families.family import ImageStage

RULE = "gausslegendre"
"""Quadrature of paths: Captum's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """Settings of methods.

    Attributes:
        samples: Random masks of sampling methods, for each part that is masked. Fewer give unreliable ranks: for the 39
            words of a prompt, two estimates correlate by 0.3 with 64 masks in all, and by 0.9 with 4,000.
    """

    steps: int = 24
    samples: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Result of a method at one layer.

    Attributes:
        values: (n,) float32, one for each row of the layer; at ``"pixels"`` (n, p, p), one for each pixel of each patch
            of the tower's input, or (n,), one for each patch; at ``"prompt"`` (L,), one for each token.
        gap: For methods that integrate along a path, the error of their sum as a share of what it should be, the
            target's difference between document and baseline. None for other methods.
    """

    values: Tensor
    gap: float | None = None


Method: TypeAlias = Callable[[AttributionInput, Sequence[str], MethodConfig], dict[str, Scores]]


def layer_activation(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the Euclidean norm of each row's state (Captum's LayerActivation).

    It does not depend on the target, so it is a baseline for other methods.
    """
    return {layer: Scores(states[0].norm(dim=-1)) for layer, states in case.states(layers).items()}


def layer_gradient_x_activation(
    case: AttributionInput, layers: Sequence[str], config: MethodConfig
) -> dict[str, Scores]:
    """Return the target's gradient times the state, summed over the width (Shrikumar et al., arXiv:1605.01713)."""
    return {
        layer: Scores((result.states * result.gradients).sum(-1)[0]) for layer, result in case.gradients(layers).items()
    }


def layer_grad_cam(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return states weighted by the mean gradient of each channel, with negative sums set to 0.

    Grad-CAM (Selvaraju et al., arXiv:1610.02391) for tokens: in the LLM the mean is taken over image tokens, and only
    these have values.
    """
    scores = {}
    for layer, result in case.gradients(layers).items():
        is_image = _image_rows(case, layer, result)
        weights = result.gradients[:, is_image].mean(1, keepdim=True)
        values = torch.relu((weights * result.states).sum(-1)[0])
        scores[layer] = Scores(torch.where(is_image, values, torch.zeros_like(values)))
    return scores


def layer_integrated_gradients(
    case: AttributionInput, layers: Sequence[str], config: MethodConfig
) -> dict[str, Scores]:
    """Integrate gradients along the straight path from the baseline's states to the document's, at each layer.

    Captum's IntegratedGradients (Sundararajan et al., arXiv:1703.01365) over the states of a layer. Each path starts at
    its layer: what comes before is computed once.
    """
    states, blank, scores = case.states(layers), case.baseline_states(layers), {}
    case.record(layers)
    for layer in layers:
        with translated_gradient_errors([layer]):
            values = IntegratedGradients(partial(case.values_from, layer)).attribute(
                states[layer], blank[layer], n_steps=config.steps, method=RULE, internal_batch_size=case.batch
            )
        with torch.no_grad():
            difference = case.value - float(case.values_from(layer, blank[layer]))
        gap = completeness_gap(float(values.detach().sum()), difference)
        scores[layer] = Scores(values.sum(-1)[0].detach().float(), gap)
    return scores


def layer_internal_influence(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the length of the mean gradient of each row of a layer along the path from the baseline to the image.

    Internal influence (Leino et al., arXiv:1802.03788): unlike conductance it does not weight a direction by how far
    the state moves along it. The Euclidean norm over the width, as the sum is zero wherever a layer norm comes next.
    """
    step_sizes, points = approximation_parameters(RULE)
    alphas, sizes = points(config.steps), torch.tensor(step_sizes(config.steps))
    sums: dict[str, Tensor] = {}
    done = 0
    for part in _path(case, alphas):
        for layer, result in case.gradients(layers, part).items():
            weights = sizes[done : done + len(part)].to(result.gradients)
            influence = torch.einsum("r,rnd->nd", weights, result.gradients)
            sums[layer] = sums[layer] + influence if layer in sums else influence
        done += len(part)
    return {layer: Scores(value.norm(dim=-1)) for layer, value in sums.items()}


def layer_conductance(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the conductance of each row of a layer along the path from the baseline to the image.

    Conductance (Dhamdhere et al., arXiv:1805.12233) by Captum's rule: at each point of the path the gradient at the
    layer times the change of its state up to the next point.
    """
    _, points = approximation_parameters(RULE)
    alphas = points(config.steps + 1)
    sums: dict[str, Tensor] = {}
    last: dict[str, ActivationGradients] = {}
    for part in _path(case, alphas):
        results = case.gradients(layers, part)
        for layer, result in results.items():
            states, gradients = result.states, result.gradients
            if layer in last:
                states = torch.cat([last[layer].states[-1:], states])
                gradients = torch.cat([last[layer].gradients[-1:], gradients])
            flow = (gradients[:-1] * (states[1:] - states[:-1])).sum((0, 2))
            sums[layer] = sums[layer] + flow if layer in sums else flow
        last = results
    with torch.no_grad():
        difference = case.value - float(case.values(1, (), case.blank_pixels[None]))
    return {layer: Scores(value, completeness_gap(float(value.sum()), difference)) for layer, value in sums.items()}


def layer_feature_ablation(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the fall of the target when a row of a layer is replaced by the baseline's (Captum's FeatureAblation)."""
    states, blank, scores = case.states(layers), case.baseline_states(layers), {}
    for layer in layers:
        count = states[layer].shape[1]

        def forward(keep: Tensor, layer: str = layer) -> Tensor:
            mixed = torch.where(keep[..., None] > 0, states[layer], blank[layer])
            return case.values_from(layer, mixed)

        scores[layer] = Scores(ablation_scores(case, forward, count, torch.arange(count)))
    return scores


def ablation_scores(case: AttributionInput, forward: Callable[[Tensor], Tensor], count: int, groups: Tensor) -> Tensor:
    """Return the fall of the target without each group of parts, divided among its members, (count,)."""
    keep = torch.ones(1, count, device=case.pixels.device)
    groups = groups.to(keep.device)
    with torch.no_grad():
        differences: Tensor = FeatureAblation(forward).attribute(
            keep, 0.0, feature_mask=groups[None], perturbations_per_eval=case.batch
        )
    return differences[0] / groups.bincount()[groups]


def _path(case: AttributionInput, alphas: Sequence[float]) -> Iterator[Tensor]:
    """Yield pixels between baseline and document, in batches."""
    start, difference = case.blank_pixels.float(), case.pixels.float() - case.blank_pixels.float()
    for first in range(0, len(alphas), case.batch):
        part = alphas[first : first + case.batch]
        yield torch.stack([start + alpha * difference for alpha in part]).to(case.pixels.dtype)


def _image_rows(case: AttributionInput, layer: str, result: ActivationGradients) -> Tensor:
    """Return which rows of a layer belong to the image and are no padding, (n,), bool."""
    if layer.startswith("llm"):
        return ~case.text
    stage: ImageStage = "connector" if layer == "connector" else "vision"
    mask = case.loaded.family.row_mask(case.loaded.model, stage, case.inputs)
    if mask is not None:
        return mask.flatten()
    return torch.ones(result.states.shape[1], dtype=torch.bool, device=result.states.device)


def completeness_gap(total: float, expected: float) -> float:
    """Return the error of a sum as a share of its expected value, or of 0.1 nats where that is smaller."""
    return abs(total - expected) / max(abs(expected), 0.1)
