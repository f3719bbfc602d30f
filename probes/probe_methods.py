"""The interface between the fit and a probe, and the two built-in probes. A plugin may provide its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.probes.logistic import Solution, solve
from medmllm_plugins.probes.mlp import fit_mlp
from medmllm_plugins.probes.row_space import RowSpace
from medmllm_plugins.probes.strength_selection import choose_strength
from medmllm_plugins.utils.import_by_name import import_by_name


@dataclass(frozen=True, slots=True, eq=False)
class ProbeData:
    """Features and labels for the probes of L layers of one width, all on one device.

    The first of the P label sets holds the real labels; then come the control tasks, then the permuted labels.

    Attributes:
        train: (L, N, D) float32 features.
        validation: (L, V, D) float32 features.
        train_labels: (P, N) int64 classes from 0 to K - 1.
        validation_labels: (P, V) int64.
        control_tasks: number of label sets that are control tasks.
        classes: number of classes, K.
        strengths: inverse L2 strengths to choose from, for probes that have one.
        validation_groups: (V,) int64 groups of the validation rows, such as patients, numbered from 0; by default each
            row is a group of its own.
    """

    train: Tensor
    validation: Tensor
    train_labels: Tensor
    validation_labels: Tensor
    control_tasks: int
    classes: int
    strengths: tuple[float, ...]
    seed: int
    validation_groups: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """Probes fitted to the layers and label sets of a :class:`ProbeData`.

    Attributes:
        predict: maps (L, T, D) float32 features to the classes predicted after fitting on each label set, (L, P, T)
            int64. It is called once or on several parts of the test fold.
        validation: (L, V) int64, classes predicted on the validation fold after fitting on the real labels.
        validation_loss: (L,) float, mean log loss of the real labels on the validation fold, in nats; the error rate
            for probes without probabilities.
        strength: (L,) float, the inverse L2 strength chosen for the real labels; ``None`` if the probe has none.
        gradient_norm: (L,) float, at the solution; ``None`` if unknown.
        warnings: one message for each fit that warned.
        log_p: maps (L, T, D) float32 features to the log probabilities of the classes after fitting on the real labels,
            (L, T, K) float32 in nats; ``None`` if the probe has no probabilities.
    """

    predict: Callable[[Tensor], Tensor]
    validation: Tensor
    validation_loss: Tensor
    strength: Tensor | None = None
    gradient_norm: Tensor | None = None
    warnings: tuple[str, ...] = ()
    log_p: Callable[[Tensor], Tensor] | None = None


Probe: TypeAlias = Callable[[ProbeData], FittedProbe]
"""The type of a ``ProbeSpec``'s target."""


def fit_linear(data: ProbeData) -> FittedProbe:
    """Fit multinomial logistic regressions, with the L2 strength chosen by log loss on the validation fold.

    The most regularised within one standard error of the lowest loss is chosen, see
    :func:`~medmllm_plugins.probes.strength_selection.choose_strength`, for the real labels and for each control task
    separately; permuted labels take the strength of the real ones.
    """
    real = 1 + data.control_tasks
    space = RowSpace(data.train)
    chosen = _fit_and_choose(space, data, data.train_labels[:real], data.validation_labels[:real])
    best = chosen.solution
    solutions = [best]
    if len(permuted := data.train_labels[real:]):
        same = chosen.strengths[:, :1].expand(-1, len(permuted))
        solutions.append(solve(space, permuted, same, classes=data.classes))

    def predict(features: Tensor) -> Tensor:
        coordinates = space.coordinates(features)
        return torch.cat([solution.logits(coordinates)[:, :, 0].argmax(-1) for solution in solutions], dim=1)

    return FittedProbe(
        predict=predict,
        validation=best.logits(space.coordinates(data.validation))[:, 0, 0].argmax(-1),
        validation_loss=chosen.losses[:, 0],
        strength=chosen.strengths[:, 0],
        gradient_norm=best.gradient_norm[:, 0, 0],
        log_p=lambda features: best.logits(space.coordinates(features))[:, 0, 0].log_softmax(-1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Regressions of L layers and P label sets with the chosen strengths, (L, P), and log losses, (L, P) in nats."""

    solution: Solution
    strengths: Tensor
    losses: Tensor


def _fit_and_choose(
    space: RowSpace, data: ProbeData, train: Tensor, validation: Tensor, row_weights: Tensor | None = None
) -> _Chosen:
    """Fit label sets (P, N) with every strength of the grid, and choose one for each by their validation labels."""
    device = data.train.device
    strengths = torch.tensor(sorted(data.strengths), dtype=torch.float32, device=device)
    grid = solve(space, train, strengths, classes=data.classes, row_weights=row_weights)
    log_p = grid.logits(space.coordinates(data.validation)).log_softmax(-1)
    group = (
        torch.arange(validation.shape[1], device=device) if data.validation_groups is None else data.validation_groups
    )
    members = torch.nn.functional.one_hot(train, data.classes).float()
    frequencies = members.sum(1) if row_weights is None else (members * row_weights[..., None]).sum(1)
    chosen = choose_strength(log_p, validation, group, frequencies)
    layer, label_set = torch.arange(len(chosen), device=device)[:, None], torch.arange(len(train), device=device)
    losses = -log_p[layer, label_set, chosen].gather(-1, validation[None, ..., None].expand(len(chosen), -1, -1, 1))
    return _Chosen(grid.choose(chosen), strengths[chosen], losses.mean((2, 3)))


def fit_paper_mlp(data: ProbeData) -> FittedProbe:
    """Train the two-layer MLP of "Lost in the Hype" (arXiv:2604.08333) and keep the weights of the last epoch."""
    probes = fit_mlp(data.train, data.train_labels, classes=data.classes, seed=data.seed)
    log_p = probes.logits(data.validation)[:, 0].log_softmax(-1)
    index = data.validation_labels[0][None, :, None].expand(len(log_p), -1, 1)
    return FittedProbe(
        predict=lambda features: probes.logits(features).argmax(-1),
        validation=log_p.argmax(-1),
        validation_loss=-log_p.gather(-1, index).mean((1, 2)),
        log_p=lambda features: probes.logits(features)[:, 0].log_softmax(-1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Refitted:
    """Probes of the real labels that were fitted on R resamples of the train rows.

    Attributes:
        predict: maps (L, T, D) float32 features to the predicted classes, (L, R, T) int64.
        log_p: maps them to log probabilities, (L, R, T, K) float32 in nats; NaN if the probe has none.
    """

    predict: Callable[[Tensor], Tensor]
    log_p: Callable[[Tensor], Tensor]


def refit(probe: Probe, data: ProbeData, row_weights: Tensor) -> Refitted:
    """Fit the real labels on resamples of the train rows, choosing the penalty again in each.

    The linear probe takes the weights and keeps the centre and scale of all train rows. Any other probe is called once
    for each resample, on repeated rows.

    Args:
        probe: the probe.
        data: the layers; of the label sets only the first is used.
        row_weights: (R, N) int64, how often each train row occurs in each resample.
    """
    count = len(row_weights)
    train, validation = (labels[:1] for labels in (data.train_labels, data.validation_labels))
    if probe is fit_linear:
        space = RowSpace(data.train)
        chosen = _fit_and_choose(space, data, train.expand(count, -1), validation.expand(count, -1), row_weights)

        def log_p(features: Tensor) -> Tensor:
            return chosen.solution.logits(space.coordinates(features))[:, :, 0].log_softmax(-1)

        return Refitted(lambda features: log_p(features).argmax(-1), log_p)
    fitted = []
    for weights in row_weights:
        rows = torch.arange(len(weights), device=weights.device).repeat_interleave(weights)
        fitted.append(
            probe(
                replace(
                    data,
                    train=data.train[:, rows],
                    train_labels=train[:, rows],
                    validation_labels=validation,
                    control_tasks=0,
                )
            )
        )
    return Refitted(
        lambda features: torch.stack([refitted.predict(features)[:, 0] for refitted in fitted], dim=1),
        lambda features: torch.stack([log_probabilities(refitted, features, data.classes) for refitted in fitted], 1),
    )


def log_probabilities(fitted: FittedProbe, features: Tensor, classes: int) -> Tensor:
    """Return the log probabilities (L, T, K) of a probe for features (L, T, D); NaN if it has none.

    Raises:
        PluginError: a plugin's probe returns another shape.
    """
    shape = (*features.shape[:2], classes)
    if fitted.log_p is None:
        return features.new_full(shape, math.nan)
    log_p = fitted.log_p(features)
    if log_p.shape != shape:
        raise PluginError(
            f"Expected `log_p` of a FittedProbe to return the shape {shape}, (layers, rows, classes), got "
            f"{tuple(log_p.shape)}. Correct the plugin's probe."
        )
    return log_p


def load_probe(name: str) -> Probe:
    """Import the probe of that name, from this package or a plugin.

    Raises:
        OptionError: no probe has this name.
        PluginError: its target cannot be imported.
    """
    specs = get_manager().probes()
    if name not in specs:
        raise OptionError(f"Expected argument `protocol` to be one of {sorted(specs)}, got {name!r}.")
    try:
        probe: Probe = import_by_name(specs[name].target)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"Expected the target of the probe {name!r}, {specs[name].target}, to be importable, got: {error}."
        ) from error
    return probe
