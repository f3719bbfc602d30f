"""Steering: push states along the direction by which a probe tells one class from another, at several doses.

A class can be readable at a layer without anything reading it there. If a push along the probe's direction moves the
answer to the other class, and pushes of the same length in other directions do not, the model uses what the probe
reads. A direction that moves nothing shows no more than that: models may read along other directions than probes.

The dose is the length of the push as a share of each token's norm. Controls of equal length are random directions and
the probe's own direction with its coordinates permuted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from medmllm_plugins.interventions.interchange import label_scores
from medmllm_plugins.interventions.recorded_pass import RecordedPass
from medmllm_plugins.interventions.twin_patching import PatchSite, mixed_states, resumed
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.generation import branch_cache
from medmllm_plugins.models.stages import is_block, layers_of

Direction: TypeAlias = Literal["probe", "opposite", "random", "permuted"]
"""Toward the target class along the probe's direction, away from it, in a random direction, and along the probe's with
permuted coordinates."""
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
STEERING_CONTROLS: Final[tuple[Direction, ...]] = ("random", "permuted")
DOSES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Length of the push, as a share of each token's norm."""
STEERED_BLOCKS: Final = 4
"""About how many blocks are steered where a task does not say."""
_STRENGTH: Final = 0.01
"""Inverse L2 strength of the probes, on standardised features."""


@dataclass(frozen=True, slots=True)
class Push:
    """One push.

    Attributes:
        site: a block, and whose states are pushed: ``image`` or ``last``.
        direction: where to.
        dose: how far, as a share of each token's norm.
    """

    site: PatchSite
    direction: Direction
    dose: float


@dataclass(frozen=True, slots=True, eq=False)
class ProbeDirections:
    """The weights of a linear probe at one site.

    Attributes:
        weights: (K, d) float32, in the space of the states themselves.
        accuracy: share of held-out train documents that the probe classifies correctly.
    """

    weights: Tensor
    accuracy: float

    def toward(self, own: int, target: int) -> Tensor:
        """Return the direction from one class to another, (d,), of length 1; zeros where the probe has none."""
        difference = self.weights[target] - self.weights[own]
        norm = difference.norm()
        return difference / norm if norm > 0 else difference


def steering_sites(loaded: LoadedModel, *, every: int = 0) -> tuple[PatchSite, ...]:
    """Return the sites: every ``every``-th block but the last, image tokens and last token.

    With 0 about :data:`STEERED_BLOCKS` blocks are taken. Behind the last block image tokens are read by nothing.
    """
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    every = every or max(1, round(len(blocks) / STEERED_BLOCKS))
    chosen = [name for index, name in enumerate(blocks[:-1]) if (index + 1) % every == 0] or blocks[:1]
    return tuple(PatchSite(name, tokens) for name in chosen for tokens in ("image", "last"))


def pushes_at(sites: Sequence[PatchSite]) -> tuple[Push, ...]:
    """Return all pushes."""
    return tuple(Push(site, direction, dose) for site in sites for direction in DIRECTIONS for dose in DOSES)


def pooled_states(
    loaded: LoadedModel, question: str, images: Sequence[VisualInput], sites: Sequence[PatchSite]
) -> dict[PatchSite, Floats]:
    """Return the states that probes are fitted on, (B, d) float64 by site: of the last token, or the image's mean."""
    inputs = loaded.prepare([question] * len(images), images)
    recorded = RecordedPass(loaded, inputs, {site.layer for site in sites})
    image = loaded.image_positions(inputs)
    pooled = {}
    for site in sites:
        (states,) = recorded.states[site.layer]
        exact = states.float()
        mask = image[:, :, None].to(exact)
        rows = exact[:, -1] if site.tokens == "last" else (exact * mask).sum(1) / mask.sum(1)
        pooled[site] = rows.double().cpu().numpy()
    return pooled


def fit_directions(states: Floats, truth: Ints, group: Ints, classes: int, seed: int = 0) -> ProbeDirections:
    """Fit a multinomial logistic regression on states of train documents.

    Args:
        states: (n, d).
        truth: (n,) classes.
        group: (n,) groups; a fifth of them is held out to measure the probe, which is then fitted on all.
        classes: K.
        seed: of the choice of groups.
    """
    order = np.random.default_rng(seed).permutation(np.unique(group))
    held = np.isin(group, order[: max(1, len(order) // 5)])
    if len(np.unique(truth[~held])) < 2 or held.all():
        held = np.zeros(len(truth), dtype=bool)
    accuracy = math.nan
    if held.any():
        model, scaler = _regression(states[~held], truth[~held])
        accuracy = float((model.predict(scaler.transform(states[held])) == truth[held]).mean())
    model, scaler = _regression(states, truth)
    coefficients = model.coef_ / scaler.scale_
    if len(model.classes_) == 2:  # one row, for the second of two classes
        coefficients = np.concatenate([-coefficients, coefficients])
    weights = np.zeros((classes, states.shape[1]))
    weights[model.classes_] = coefficients
    return ProbeDirections(torch.tensor(weights, dtype=torch.float32), accuracy)


def _regression(states: Floats, truth: Ints) -> tuple[LogisticRegression, StandardScaler]:
    scaler = StandardScaler().fit(states)
    with threadpool_limits(1):
        model = LogisticRegression(C=_STRENGTH, max_iter=2000).fit(scaler.transform(states), truth)
    return model, scaler


def steer(
    loaded: LoadedModel,
    question: str,
    images: Sequence[VisualInput],
    labels: Sequence[str],
    pushes: Sequence[Push],
    directions: Mapping[PatchSite, ProbeDirections],
    pairs: Sequence[tuple[int, int]],
    *,
    seeds: Sequence[int],
) -> dict[Push | Literal["own"], list[tuple[float, ...]]]:
    """Score the labels of a batch of documents with states pushed.

    Args:
        loaded: the model.
        question: the question about each document.
        images: one visual input a document.
        labels: the labels to score.
        pushes: what is pushed where.
        directions: the probe at each site.
        pairs: class of each document, and the class toward which it is pushed.
        seeds: of random directions and permutations, one a document.

    Returns:
        Log-probabilities of the labels by push, and without one (``own``), in nats, document by document.
    """
    inputs = loaded.prepare([question] * len(images), images)
    own = RecordedPass(loaded, inputs, {push.site.layer for push in pushes})
    image = loaded.image_positions(inputs)
    label_ids = [loaded.label_ids(question, labels)] * len(images)
    scores: dict[Push | Literal["own"], list[tuple[float, ...]]] = {}
    for push in pushes:
        (states,) = own.states[push.site.layer]
        units = _units(push.direction, directions[push.site], pairs, seeds).to(states.device)
        exact = states.float()
        moved = exact + push.dose * exact.norm(dim=-1, keepdim=True) * units[:, None]
        mixed = mixed_states(push.site, own, (moved.to(states),), image)
        scores[push] = label_scores(loaded, resumed(push.site, own, mixed), label_ids)
    # Scoring extends the cache, from which further passes are resumed.
    start = replace(own.start, cache=branch_cache(own.start.cache))
    scores["own"] = label_scores(loaded, start, label_ids)
    return scores


def _units(
    direction: Direction, probe: ProbeDirections, pairs: Sequence[tuple[int, int]], seeds: Sequence[int]
) -> Tensor:
    """Return the direction of each document, (B, d) float32, of length 1."""
    rows = []
    for (own, target), seed in zip(pairs, seeds, strict=True):
        unit, generator = probe.toward(own, target), torch.Generator().manual_seed(seed)
        if direction == "opposite":
            unit = -unit
        if direction == "random":
            unit = torch.randn(len(unit), generator=generator)
            unit = unit / unit.norm()
        if direction == "permuted":
            unit = unit[torch.randperm(len(unit), generator=generator)]
        rows.append(unit)
    return torch.stack(rows)
