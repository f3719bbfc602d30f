"""Steering: push states along the direction by which a probe tells one class from another, at several doses.

A class can be readable at a layer without anything reading it there. If a push along the probe's direction moves the
answer to the other class, and pushes of the same length in other directions do not, the model uses what the probe
reads. A direction that moves nothing shows no more than that: models may read along other directions than probes.

The dose is the length of the push as a share of each token's norm. Controls of equal length are random directions and
the probe's own direction with its coordinates permuted. Strong pushes leave the range of states that the model knows
and break answers; how likely the model without the push finds an answer shows that.
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
from medmllm_plugins.interventions.twin_patching import PatchSite, mixed_states, resumed, unread_blocks
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.cache_layers import own_copies
from medmllm_plugins.models.generation import Prefill, greedy, score_labels
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.models.stages import is_block, layers_of
from medmllm_plugins.prompts.patch_options import Tokens

Direction: TypeAlias = Literal["probe", "opposite", "random", "permuted"]
"""Toward the target class along the probe's direction, away from it, in a random direction, and along the probe's with
permuted coordinates."""
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
STEERING_CONTROLS: Final[tuple[Direction, ...]] = ("random", "permuted")
DOSES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Length of the push, as a share of each token's norm."""
STEERED_BLOCKS: Final = 4
"""About how many blocks are steered where a task does not say."""
_TOGETHER: Final = 16
"""Answers to a document whose tokens are scored at a time."""
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


@dataclass(frozen=True, slots=True)
class PushedAnswer:
    """A model's answer to one document.

    Attributes:
        text: the generated text.
        scores: log-probability of each label, in nats.
        surprise: mean of -log p of the answer's tokens in the model without the push, in nats; NaN for no tokens. The
            answer's perplexity is its exponential.
    """

    text: str
    scores: tuple[float, ...]
    surprise: float


def steering_sites(loaded: LoadedModel, *, every: int = 0) -> tuple[PatchSite, ...]:
    """Return the sites: every ``every``-th block but the last, image tokens and last token.

    With 0 about :data:`STEERED_BLOCKS` blocks are taken. Image tokens are left out where nothing reads them any more:
    behind the last block that makes keys of its own.
    """
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    every = every or max(1, round(len(blocks) / STEERED_BLOCKS))
    chosen = [name for index, name in enumerate(blocks[:-1]) if (index + 1) % every == 0] or blocks[:1]
    unread = unread_blocks(loaded)
    kinds: tuple[Tokens, ...] = ("image", "last")
    return tuple(
        PatchSite(name, tokens) for name in chosen for tokens in kinds if not (tokens == "image" and name in unread)
    )


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
    max_new_tokens: int = 16,
) -> dict[Push | Literal["own"], list[PushedAnswer]]:
    """Answer about a batch of documents with states pushed.

    Args:
        loaded: the model.
        question: the question about each document.
        images: one visual input a document.
        labels: the labels to score.
        pushes: what is pushed where.
        directions: the probe at each site.
        pairs: class of each document, and the class toward which it is pushed.
        seeds: of random directions and permutations, one a document.
        max_new_tokens: the most tokens of an answer.

    Returns:
        The answers by push, and without one (``own``), document by document.
    """
    inputs = loaded.prepare([question] * len(images), images)
    own = RecordedPass(loaded, inputs, {push.site.layer for push in pushes})
    image = loaded.image_positions(inputs)
    label_ids = [loaded.label_ids(question, labels)] * len(images)
    scores: dict[Push | Literal["own"], list[tuple[float, ...]]] = {}
    tokens: dict[Push | Literal["own"], list[list[int]]] = {}

    def answer(condition: Push | Literal["own"], start: Prefill) -> None:
        scores[condition] = label_scores(loaded, start, label_ids)
        ends = loaded.eos_token_ids
        tokens[condition] = greedy(loaded.model, start, max_new_tokens=max_new_tokens, eos_token_ids=ends)

    # Answering extends the cache, from which further passes are resumed.
    clean = replace(own.start, cache=own_copies(own.start.cache))
    with torch.no_grad():
        answer("own", clean)
        for push in pushes:
            (states,) = own.states[push.site.layer]
            units = _units(push.direction, directions[push.site], pairs, seeds).to(states.device)
            exact = states.float()
            moved = exact + push.dose * exact.norm(dim=-1, keepdim=True) * units[:, None]
            mixed = mixed_states(push.site, own, (moved.to(states),), image)
            answer(push, resumed(push.site, own, mixed))
        surprises = _surprises(loaded, own.start, list(tokens.values()))
    return {
        condition: [
            PushedAnswer(_text(loaded, row), some, surprise)
            for row, some, surprise in zip(rows, scores[condition], values, strict=True)
        ]
        for (condition, rows), values in zip(tokens.items(), surprises, strict=True)
    }


def _surprises(loaded: LoadedModel, start: Prefill, answers: Sequence[list[list[int]]]) -> list[list[float]]:
    """Return the surprise of each answer after the prompts as they are.

    Args:
        loaded: the model.
        start: its state after B prompts.
        answers: tokens of the B answers under each condition.
    """
    distinct = [sorted({tuple(rows[index]) for rows in answers} - {()}) for index in range(len(start.logits))]
    distinct = [some or [(0,)] for some in distinct]  # a token whose value nothing reads
    known: list[dict[tuple[int, ...], float]] = [{(): math.nan} for _ in distinct]
    for first in range(0, max(map(len, distinct)), _TOGETHER):
        parts = [some[first : first + _TOGETHER] for some in distinct]
        width = max(map(len, parts))
        # Documents with fewer answers score one of theirs again.
        padded = [[*part, *[some[0]] * (width - len(part))] for part, some in zip(parts, distinct, strict=True)]
        rows = score_labels(loaded.model, start, padded).tolist()
        for by_answer, ids, values in zip(known, padded, rows, strict=True):
            by_answer.update({answer: -value / len(answer) for answer, value in zip(ids, values, strict=True)})
    return [[known[index][tuple(row)] for index, row in enumerate(rows)] for rows in answers]


def _text(loaded: LoadedModel, tokens: list[int]) -> str:
    return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


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
