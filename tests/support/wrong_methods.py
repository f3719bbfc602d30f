"""Probes, attribution methods and interventions that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.methods.layer_methods import (
    MethodConfig,
    Scores,
    layer_gradient_x_activation,
    layer_integrated_gradients,
)
from medmllm_plugins.attribution.patches import to_patches
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData, fit_linear

# -- probes


def narrow_predictions(data: ProbeData) -> FittedProbe:
    fitted = fit_linear(data)
    return replace(fitted, predict=lambda features: fitted.predict(features).to(torch.int32))


def constant(data: ProbeData) -> FittedProbe:
    sets = len(data.train_labels)
    return FittedProbe(
        predict=lambda features: torch.zeros(len(features), sets, features.shape[1], dtype=torch.int64),
        validation=torch.zeros(data.validation.shape[:2], dtype=torch.int64),
        validation_loss=torch.ones(len(data.validation)),
    )


def memorising(data: ProbeData) -> FittedProbe:
    """The nearest neighbour among the rows of both folds, with their labels."""
    rows = torch.cat([data.train, data.validation], dim=1)
    labels = torch.cat([data.train_labels, data.validation_labels], dim=1)

    def predict(features: Tensor) -> Tensor:
        nearest = torch.cdist(features, rows).argmin(-1)
        return labels[:, nearest].movedim(0, 1)

    validation = predict(data.validation)[:, 0]
    return FittedProbe(predict, validation, (validation != data.validation_labels[0]).double().mean(1))


def real_labels_only(data: ProbeData) -> FittedProbe:
    fitted, sets = fit_linear(data), len(data.train_labels)
    return replace(fitted, predict=lambda features: fitted.predict(features)[:, :1].expand(-1, sets, -1).contiguous())


def drawn(data: ProbeData) -> FittedProbe:
    return fit_linear(replace(data, train=data.train + 2 * torch.randn(data.train.shape)))


def standardising_in_place(data: ProbeData) -> FittedProbe:
    data.train.sub_(data.train.mean(1, keepdim=True))
    return fit_linear(data)


# -- attribution methods


def too_few_rows(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    return {layer: Scores(states[0, 1:].norm(dim=-1)) for layer, states in case.states(layers).items()}


def random_scores(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    return {layer: Scores(torch.rand(states.shape[1])) for layer, states in case.states(layers).items()}


def seeded_random_scores(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    generator = torch.Generator().manual_seed(config.seed)
    return {
        layer: Scores(torch.rand(states.shape[1], generator=generator)) for layer, states in case.states(layers).items()
    }


def leaving_a_hook(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    case.layer("connector").module.register_forward_hook(lambda *_: None)
    return layer_gradient_x_activation(case, layers, config)


def edges(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """How much the pixels of each patch vary, which no model has a part in."""
    return {"pixels": Scores(to_patches(case.loaded, case.pixels).float().flatten(1).std(1))}


def incomplete(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    results = layer_integrated_gradients(case, layers, config)
    return {layer: replace(scores, gap=0.9) for layer, scores in results.items()}


def upside_down(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    results = layer_integrated_gradients(case, layers, config)
    return {layer: Scores(-scores.values) for layer, scores in results.items()}


def corners(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """What integrated gradients find, turned round."""
    results = layer_integrated_gradients(case, layers, config)
    shown = {}
    for layer, scores in results.items():
        values = torch.zeros_like(scores.values)
        values[:3] = scores.values.abs().max()
        shown[layer] = Scores(values + 1e-3 * scores.values)
    return shown


# -- interventions


def scores_of(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str]
) -> list[tuple[float, ...]]:
    generations = model.generate([question] * len(images), images, max_new_tokens=0, labels=labels)
    return [tuple(item.scores or ()) for item in generations]


def turned(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    """A right one: the image turned by 180 degrees."""
    return {"turned": scores_of(model, question, [image.rotate(180) for image in images], labels)}


def too_short(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    return {"short": scores_of(model, question, images, labels)[1:]}


def noisy(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    scores = np.array(scores_of(model, question, images, labels))
    return {"noise": (scores + np.random.default_rng().normal(size=scores.shape)).tolist()}


def centred_in_the_batch(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    scores = np.array(scores_of(model, question, images, labels))
    return {"centred": (scores - scores.mean(0)).tolist()}


def leaving_edits(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    scores = scores_of(model, question, images, labels)
    head: Any = stage_module(model.model, model.family.head)
    with torch.no_grad():
        head.weight.mul_(0.5)
    return {"halved": scores}


def careless(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    """Remove a hook only if nothing fails."""
    connector = stage_module(model.model, model.family.connector)
    handle = connector.register_forward_hook(lambda _, __, output: output * 0)
    scores = scores_of(model, question, images, labels)
    handle.remove()
    return {"no image": scores}


def unwritable_name(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    return {"half a \ud83d": scores_of(model, question, images, labels)}
