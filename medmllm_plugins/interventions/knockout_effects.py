"""The effects of attention knock-out, with clustered intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from medmllm_plugins.interventions.knockout import Cut
from medmllm_plugins.interventions.paired_losses import paired_losses
from medmllm_plugins.metrics.classification import Ints
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
    cuts = {key: rows for key, rows in scores.items() if isinstance(key, Cut)}
    accuracy, losses = paired_losses(scores["own"], cuts, truth, group, seed=seed)
    points = tuple(
        KnockoutPoint(
            first=cut.first,
            last=cut.last,
            queries=cut.queries,
            accuracy=loss.accuracy,
            lost=loss.lost,
            log_odds_lost=loss.log_odds_lost,
        )
        for cut, loss in losses.items()
    )
    return Knockout(n=len(truth), groups=len(np.unique(group)), accuracy=accuracy, points=points)


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
