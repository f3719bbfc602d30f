"""The probe of "Lost in the Hype" (arXiv:2604.08333), a two-layer MLP, for all layers and label sets at once.

The paper trains one probe after the other: ReLU, dropout 0.1, AdamW at a rate of 1e-4 with a cosine schedule and a
warm-up of 0.05, 20 epochs of batches of 4. It leaves open the hidden width (512 here), the standardisation of features
(per layer, with the train rows' statistics), the weight decay (torch's, 0.01) and the initial weights (torch's, those
of ``nn.Linear``).

Batches of 4 leave nearly all of the time to calls and to the optimiser, so probes are stacked: one batched product and
one fused AdamW serve all of them. All probes see the same initial weights, shuffles and dropped units, so that what
differs between two of them does not lie in the draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.probes.row_space import expect_alike, expect_features, not_finite, standardise

HIDDEN = 512
"""Hidden units; the paper does not say how many."""
BATCH = 4
RATE = 1e-4
WARM_UP = 0.05
"""Share of the steps over which the rate rises from zero."""
DROPOUT = 0.1
DECAY = 0.01
"""Weight decay; the paper does not say, this is torch's default."""

_PARAMETERS = {"cpu": 1 << 20, "cuda": 1 << 29}
"""Weights trained together, at least one probe: on a CPU what stays in its cache with the optimiser's two moments."""


@dataclass(frozen=True, slots=True)
class Initial:
    """First weights, shared by all probes of one width.

    Attributes:
        first: (D, H) float32, and its intercepts first_0, (H,).
        second: (H, K) float32, and its intercepts second_0, (K,).
    """

    first: Tensor
    first_0: Tensor
    second: Tensor
    second_0: Tensor


@dataclass(frozen=True, slots=True)
class MLPs:
    """Trained probes of L layers and P label sets, with H hidden units and K classes.

    Attributes:
        mean: (L, D) float32, subtracted from features.
        scale: (L, D) float32, by which they are then divided.
        first: (L, D, P H) float32 weights of the hidden units, and their intercepts first_0, (L, 1, P H).
        second: (L, P, H, K) float32 weights of the classes, and their intercepts second_0, (L, P, 1, K).
    """

    mean: Tensor
    scale: Tensor
    first: Tensor
    first_0: Tensor
    second: Tensor
    second_0: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Compute the logits (L, P, M, K) of features (L, M, D), without dropout.

        The features are float32 on the device of the train rows; the softmax over the classes is the
        probability.

        Raises:
            DataError: a feature is NaN or infinite.
            OptionError: the shape or the type is another.
        """
        expect_alike(features, self.mean)
        layers, sets, hidden = self.second.shape[:3]
        rows = (features - self.mean[:, None]) / self.scale[:, None]
        units = torch.baddbmm(self.first_0, rows, self.first).relu()
        logits: Tensor = units.view(layers, -1, sets, hidden).transpose(1, 2) @ self.second + self.second_0
        # NaN propagates to the logits, but ReLU may remove an infinite value, so the features are checked too.
        if not bool(logits.isfinite().all()) or not bool(features.isfinite().all()):
            raise DataError(not_finite(features, first=0))
        return logits


def fit_mlp(
    train: Tensor,
    targets: Tensor,
    *,
    classes: int,
    seed: int,
    epochs: int = 20,
    hidden: int = HIDDEN,
    dropout: float = DROPOUT,
) -> MLPs:
    """Train one probe for each layer and label set, by the paper's recipe.

    Args:
        train: (L, N, D) float32 features of L layers of one width.
        targets: (P, N) int64 classes from 0 to K - 1, the label sets.
        classes: K, at least 2.
        seed: of initial weights, shuffles and dropped units; they do not depend on the device.
        epochs: passes over the train rows.
        hidden: H, hidden units of each probe.
        dropout: share of the hidden units that is dropped in each step, for each row.

    Raises:
        DataError: a feature is NaN or infinite.
        OptionError: an argument has another shape or range.
    """
    expect_features("train", train)
    layers, rows, width = train.shape
    _expect_labels(targets, rows, classes)
    if epochs < 1 or hidden < 1 or not 0 <= dropout < 1:
        raise OptionError(
            "Expected arguments `epochs` and `hidden` to be at least 1 and `dropout` to be from 0 to below 1, got "
            f"{epochs}, {hidden} and {dropout}."
        )
    weights = initial(width, hidden, classes, seed)
    right = torch.nn.functional.one_hot(targets.to(train.device), classes).float()
    most = max(1, _PARAMETERS.get(train.device.type, _PARAMETERS["cpu"]) // (width * hidden))
    sets_at_once = max(1, min(most, len(targets)))
    layers_at_once = max(1, most // sets_at_once)
    trained = []
    for start in range(0, layers, layers_at_once):
        part = train[start : start + layers_at_once]
        trained.append(
            _concatenate(
                [
                    _train(part, some, weights, start, epochs, dropout, seed)
                    for some in torch.split(right, sets_at_once)
                ],
            )
        )
    mean, scale, first, first_0, second, second_0 = (torch.cat(parts) for parts in zip(*trained, strict=True))
    return MLPs(mean, scale, first, first_0, second, second_0)


def _concatenate(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate the fields of :class:`MLPs` for the same layers and further label sets."""
    (mean, scale, *_), *_ = parts
    first, first_0 = (torch.cat([part[field] for part in parts], dim=2) for field in (2, 3))
    second, second_0 = (torch.cat([part[field] for part in parts], dim=1) for field in (4, 5))
    return mean, scale, first, first_0, second, second_0


def initial(width: int, hidden: int, classes: int, seed: int) -> Initial:
    """Draw first weights as ``torch.nn.Linear`` does: uniform within one over the root of the number of inputs."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(inputs: int, *shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)

    return Initial(
        first=uniform(width, width, hidden),
        first_0=uniform(width, hidden),
        second=uniform(hidden, hidden, classes),
        second_0=uniform(hidden, classes),
    )


def rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate in a step, 0 to ``steps`` - 1.

    It rises linearly from zero over the warm-up, and falls to zero along half a cosine, as transformers' schedule does.
    """
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return step / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def batches(rows: int, epochs: int, hidden: int, dropout: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the rows of each step, of N, and the dropout of the H hidden units.

    Yields:
        For each step B <= 4 rows, (B,) int64, and factors of the hidden units, (B, H) float32: 0 where one is dropped,
        else 1 / (1 - dropout).
    """
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        mask = (torch.rand(rows, hidden, generator=generator) >= dropout) / (1 - dropout)
        yield from zip(torch.split(order, BATCH), torch.split(mask, BATCH), strict=True)


def _train(
    train: Tensor, right: Tensor, start: Initial, first_layer: int, epochs: int, dropout: float, seed: int
) -> tuple[Tensor, ...]:
    """Return the fields of :class:`MLPs`, trained on (l, N, D) float32 and the classes as zeros and ones, (P, N, K)."""
    mean, scale, exact = standardise(train, first=first_layer)
    data = exact.float()
    del exact
    (layers, rows, _), sets = train.shape, len(right)
    hidden = start.first.shape[1]
    device = train.device
    first = start.first.to(device).repeat(layers, 1, sets)
    first_0 = start.first_0.to(device).repeat(layers, 1, sets)
    second = start.second.to(device).repeat(layers, sets, 1, 1)
    second_0 = start.second_0.to(device).repeat(layers, sets, 1, 1)
    parameters = (first, first_0, second, second_0)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    # AdamW works number by number, so that one for all probes is the same as one for each.
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=True)
    steps = epochs * math.ceil(rows / BATCH)
    for step, (indices, mask) in enumerate(batches(rows, epochs, hidden, dropout, seed)):
        indices, mask = indices.to(device), mask.to(device).repeat(1, sets)
        batch = data[:, indices]
        units = torch.baddbmm(first_0, batch, first).relu_().mul_(mask)
        split = units.view(layers, -1, sets, hidden).transpose(1, 2)
        chance = (split @ second + second_0).softmax(-1)
        # The backward pass by hand: it spares the autograd's calls, and a new array of gradients in each step.
        error = (chance - right[:, indices]) / len(indices)
        torch.matmul(split.mT, error, out=second.grad)
        torch.sum(error, 2, keepdim=True, out=second_0.grad)
        back = (error @ second.mT).transpose(1, 2).reshape(units.shape).mul_(mask).mul_(units > 0)
        torch.bmm(batch.mT, back, out=first.grad)
        torch.sum(back, 1, keepdim=True, out=first_0.grad)
        optimiser.param_groups[0]["lr"] = RATE * rate(step, steps)
        optimiser.step()
    for parameter in parameters:
        parameter.grad = None
    return mean, scale, *parameters


def _expect_labels(targets: Tensor, rows: int, classes: int) -> None:
    if targets.ndim != 2 or targets.shape[1] != rows or targets.dtype != torch.int64:
        raise OptionError(
            f"Expected argument `targets` to be int64 of the shape (label sets, {rows}), got {targets.dtype} of "
            f"the shape {tuple(targets.shape)}: give each train row one class in each label set."
        )
    if classes < 2 or not bool(((targets >= 0) & (targets < classes)).all()):
        raise OptionError(
            f"Expected argument `targets` to hold classes from 0 to {classes - 1}, at least two of them, got "
            f"{torch.unique(targets).tolist()[:10]}: number the classes from 0."
        )
