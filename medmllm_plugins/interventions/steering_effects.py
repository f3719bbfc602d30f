"""The effects of steering, with clustered intervals, and the push that moves the answers beyond its controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.interventions.steering import STEERING_CONTROLS, ProbeDirections, Push, PushedAnswer
from medmllm_plugins.interventions.twin_patching import PatchSite
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    UNKNOWN,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)
from medmllm_plugins.results.steering_records import Steering, SteeringPoint, SteeringProbe

Answers: TypeAlias = Mapping[Push | Literal["own"], Sequence[PushedAnswer]]
Bools: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]
LEAST_MASS: Final = 0.5
"""Below this share of the probability that labels have without a push, the push breaks answers and is not chosen."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The answers under one condition as arrays: label scores, (n, K); which were read, (n,); surprise, (n,)."""

    scores: Floats
    parsed: Bools
    surprise: Floats

    @classmethod
    def of(cls, answers: Sequence[PushedAnswer], read: Callable[[str], int]) -> _Rows:
        return cls(
            np.array([answer.scores for answer in answers], dtype=np.float64),
            np.array([read(answer.text) >= 0 for answer in answers]),
            np.array([answer.surprise for answer in answers], dtype=np.float64),
        )

    def on_labels(self, chosen: Bools) -> float:
        """Return the probability of all labels together."""
        return float(np.exp(logsumexp(self.scores[chosen], axis=1)).mean())

    def perplexity(self, chosen: Bools) -> float:
        """Return the perplexity of the answers; NaN where none has a token."""
        surprise = self.surprise[chosen]
        surprise = surprise[~np.isnan(surprise)]
        return float(np.exp(surprise.mean())) if len(surprise) else math.nan


def steering_effects(
    answers: Answers,
    truth: Ints,
    target: Ints,
    group: Ints,
    probes: Mapping[PatchSite, ProbeDirections],
    read: Callable[[str], int],
    *,
    seed: int = 0,
) -> Steering:
    """Measure how far each push moves the answers to another class.

    The push that is named is chosen on half of the groups and measured on the other half, so that the best of many is
    not better than it is by chance.

    Args:
        answers: answers about all documents by push, and without one (``own``).
        truth: (n,) classes of the documents.
        target: (n,) classes toward which they are pushed.
        group: (n,) groups of the documents.
        probes: the probes by site.
        read: returns the class that an answer names, -1 for none.
        seed: of the halves and the bootstrap resamples.
    """
    _, group = np.unique(group, return_inverse=True)
    by_condition = {condition: _Rows.of(rows, read) for condition, rows in answers.items()}
    own = by_condition["own"]
    pushed = {push: rows for push, rows in by_condition.items() if isinstance(push, Push)}
    everyone = np.ones(len(truth), dtype=bool)
    points = _points(own, pushed, truth, target, group, everyone, seed)
    half = np.isin(group, np.random.default_rng(seed).permutation(group.max() + 1)[: (group.max() + 1) // 2])
    result = Steering(
        n=len(truth),
        groups=int(group.max()) + 1,
        on_labels=own.on_labels(everyone),
        parsed=float(own.parsed.mean()),
        perplexity=own.perplexity(everyone),
        probes=tuple(
            SteeringProbe(layer=site.layer, tokens=site.tokens, accuracy=probe.accuracy)
            for site, probe in probes.items()
        ),
        points=tuple(points.values()),
    )
    if half.sum() < 2 or (~half).sum() < 2:
        return result
    chosen = _chosen(_points(own, pushed, truth, target, group, half, seed), result.on_labels)
    if chosen is None:
        return result
    measured = _points(own, pushed, truth, target, group, ~half, seed)
    controls = [measured[replace(chosen, direction=name)].shift for name in STEERING_CONTROLS]
    return replace(result, chosen=measured[chosen], chosen_control=max(controls, key=lambda shift: shift.value))


def _chosen(points: Mapping[Push, SteeringPoint], on_labels: float) -> Push | None:
    """Return the push along the probe's direction that moves most beyond its controls."""
    best, most = None, 0.0
    for push, point in points.items():
        if push.direction != "probe" or point.on_labels < LEAST_MASS * on_labels:
            continue
        beyond = point.shift.value - max(
            points[replace(push, direction=name)].shift.value for name in STEERING_CONTROLS
        )
        if beyond > most:
            best, most = push, beyond
    return best


def _points(
    own: _Rows,
    pushed: Mapping[Push, _Rows],
    truth: Ints,
    target: Ints,
    group: Ints,
    chosen: Bools,
    seed: int,
) -> dict[Push, SteeringPoint]:
    documents = np.arange(int(chosen.sum()))
    truth, target = truth[chosen], target[chosen]
    group = np.unique(group[chosen], return_inverse=True)[1].astype(np.intp)

    def margin(rows: Floats) -> Floats:
        """Log-odds of the target against the document's own class, (n,) in nats."""
        result: Floats = rows[documents, target] - rows[documents, truth]
        return result

    before, already = margin(own.scores[chosen]), own.scores[chosen].argmax(1) == target
    scores = [rows.scores[chosen] for rows in pushed.values()]
    shifts = [margin(some) - before for some in scores]
    flips = [((some.argmax(1) == target) & ~already).astype(np.float64) for some in scores]
    rows = np.array([*shifts, *flips])
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T},
        group,
        resamples=RESAMPLES,
        seed=seed,
        cells=len(rows),
    )
    means, drawn, count, groups = values[""], resampled[""], len(shifts), effective_groups(group)
    inflation = size_inflation(rows[count:], group)
    return {
        push: SteeringPoint(
            layer=push.site.layer,
            tokens=push.site.tokens,
            direction=push.direction,
            dose=push.dose,
            shift=estimate(float(means[index]), drawn[:, index], groups=groups),
            flips=estimate(
                float(means[count + index]),
                drawn[:, count + index],
                groups=groups,
                bounds=SHARE,
                inflation=float(inflation[index]),
            ),
            on_labels=answered.on_labels(chosen),
            parsed=float(answered.parsed[chosen].mean()),
            perplexity=answered.perplexity(chosen),
        )
        for index, (push, answered) in enumerate(pushed.items())
    }


def headline(result: Steering) -> str:
    """Return the result in one or two sentences."""
    chosen, control = result.chosen, result.chosen_control
    if chosen is None:
        return "No push along a probe's direction moves the answers of half of the documents beyond its controls."
    where = f"{'the image tokens' if chosen.tokens == 'image' else 'the last token'} at {chosen.layer}"
    effect = (
        f"A push of {where} along the probe's direction, {chosen.dose:g} times the norm of each token, moves the "
        f"log-odds by {_nats(chosen.shift)}, and {chosen.flips.value:.1%} of the documents to the other class"
    )
    if control is UNKNOWN or chosen.shift.low > control.high:
        return f"{effect}; controls of the same length by {_nats(control)}. The answers depend on what the probe reads."
    return f"{effect}; controls of the same length by {_nats(control)}, so this direction is not shown to be used."


def _nats(shift: Estimate) -> str:
    return f"{shift.value:+.2f} nats (95% CI {shift.low:+.2f} to {shift.high:+.2f})"
