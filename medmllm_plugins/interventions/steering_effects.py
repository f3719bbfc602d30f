"""The effects of steering, with clustered intervals, and the push that moves the answers beyond its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.interventions.steering import STEERING_CONTROLS, ProbeDirections, Push
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

Scores = Mapping[Push | Literal["own"], Sequence[tuple[float, ...]]]
LEAST_MASS: Final = 0.5
"""Below this share of the probability that labels have without a push, the push breaks answers and is not chosen."""


def steering_effects(
    scores: Scores,
    truth: Ints,
    target: Ints,
    group: Ints,
    probes: Mapping[PatchSite, ProbeDirections],
    *,
    seed: int = 0,
) -> Steering:
    """Measure how far each push moves the answers to another class.

    The push that is named is chosen on half of the groups and measured on the other half, so that the best of many is
    not better than it is by chance.

    Args:
        scores: label scores of all documents by push, and without one (``own``).
        truth: (n,) classes of the documents.
        target: (n,) classes toward which they are pushed.
        group: (n,) groups of the documents.
        probes: the probes by site.
        seed: of the halves and the bootstrap resamples.
    """
    _, group = np.unique(group, return_inverse=True)
    own = np.array(scores["own"], dtype=np.float64)
    pushed = {push: np.array(rows, dtype=np.float64) for push, rows in scores.items() if isinstance(push, Push)}
    everyone = np.ones(len(truth), dtype=bool)
    points = _points(own, pushed, truth, target, group, everyone, seed)
    half = np.isin(group, np.random.default_rng(seed).permutation(group.max() + 1)[: (group.max() + 1) // 2])
    result = Steering(
        n=len(truth),
        groups=int(group.max()) + 1,
        on_labels=float(np.exp(logsumexp(own, axis=1)).mean()),
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
    own: Floats,
    pushed: Mapping[Push, Floats],
    truth: Ints,
    target: Ints,
    group: Ints,
    chosen: np.ndarray[tuple[int], np.dtype[np.bool_]],
    seed: int,
) -> dict[Push, SteeringPoint]:
    documents = np.arange(int(chosen.sum()))
    own, truth, target = own[chosen], truth[chosen], target[chosen]
    group = np.unique(group[chosen], return_inverse=True)[1].astype(np.intp)

    def margin(rows: Floats) -> Floats:
        """Log-odds of the target against the document's own class, (n,) in nats."""
        result: Floats = rows[documents, target] - rows[documents, truth]
        return result

    before, already = margin(own), own.argmax(1) == target
    shifts = [margin(rows[chosen]) - before for rows in pushed.values()]
    flips = [((rows[chosen].argmax(1) == target) & ~already).astype(np.float64) for rows in pushed.values()]
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
            on_labels=float(np.exp(logsumexp(scores[chosen], axis=1)).mean()),
        )
        for index, (push, scores) in enumerate(pushed.items())
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
