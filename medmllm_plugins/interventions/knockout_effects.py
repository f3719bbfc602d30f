"""The effects of attention knock-out, with clustered intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.interventions.knockout import Cut
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    paired_difference,
)
from medmllm_plugins.results.knockout_records import Knockout, KnockoutPoint

Scores = Mapping[Cut | Literal["own"], Sequence[tuple[float, ...]]]


def knockout_effects(scores: Scores, truth: Ints, group: Ints, *, seed: int = 0) -> Knockout:
    """Measure what the answers lose by each cut.

    Args:
        scores: label scores of all documents by cut, and without one (``own``).
        truth: (n,) classes.
        group: (n,) groups of the documents.
        seed: of the bootstrap resamples.
    """
    _, group = np.unique(group, return_inverse=True)
    group = group.astype(np.intp)
    keys: list[Cut | Literal["own"]] = ["own", *(key for key in scores if isinstance(key, Cut))]
    rows = np.concatenate([_per_document(scores[key], truth) for key in keys])
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T},
        group,
        resamples=RESAMPLES,
        seed=seed,
        cells=len(rows),
    )
    means, drawn, groups = values[""], resampled[""], effective_groups(group)

    def accuracy(index: int) -> Estimate:
        return estimate(float(means[2 * index]), drawn[:, 2 * index], groups=groups, bounds=SHARE)

    own = accuracy(0)
    points = []
    for index, key in enumerate(keys[1:], start=1):
        assert isinstance(key, Cut), "only the first is none"
        mine = accuracy(index)
        points.append(
            KnockoutPoint(
                first=key.first,
                last=key.last,
                queries=key.queries,
                accuracy=mine,
                lost=paired_difference(own, mine, (drawn[:, 0], drawn[:, 2 * index])),
                log_odds_lost=estimate(
                    float(means[1] - means[2 * index + 1]), drawn[:, 1] - drawn[:, 2 * index + 1], groups=groups
                ),
            )
        )
    return Knockout(n=len(truth), groups=len(np.unique(group)), accuracy=own, points=tuple(points))


def _per_document(rows: Sequence[tuple[float, ...]], truth: Ints) -> Floats:
    """Return hits and log-odds of the correct label, (2, n)."""
    values, documents = np.array(rows, dtype=np.float64), np.arange(len(truth))
    others = values.copy()
    others[documents, truth] = -np.inf
    odds = values[documents, truth] - logsumexp(others, axis=1)
    result: Floats = np.stack([(values.argmax(1) == truth).astype(np.float64), odds])
    return result


def headline(result: Knockout) -> str:
    """Return the result in one or two sentences."""
    every = [point for point in result.points if point.queries == "text"]
    if not every:
        return "No attention was cut."
    blind = every[-1]
    sentences = [
        f"With the image hidden from all text in all layers, {blind.accuracy.value:.1%} of {result.n} documents are "
        f"classified correctly, {result.accuracy.value:.1%} otherwise."
    ]
    for queries in ("question", "answer"):
        points = [point for point in result.points if point.queries == queries and not _is_whole(point, blind)]
        losing = [point for point in points if point.lost.low > 0]
        if losing:
            worst = max(losing, key=lambda point: point.lost.value)
            lost, low, high = (100 * number for number in (worst.lost.value, worst.lost.low, worst.lost.high))
            sentences.append(
                f"Hidden from the {queries} alone, most is lost in {_window(worst)} ({lost:.1f} points, 95% CI "
                f"{low:.1f} to {high:.1f})."
            )
        else:
            sentences.append(f"Hidden from the {queries} alone, no single window of layers costs accuracy for certain.")
    return " ".join(sentences)


def _is_whole(point: KnockoutPoint, blind: KnockoutPoint) -> bool:
    return (point.first, point.last) == (blind.first, blind.last)


def _window(point: KnockoutPoint) -> str:
    return point.first if point.first == point.last else f"{point.first} to {point.last}"
