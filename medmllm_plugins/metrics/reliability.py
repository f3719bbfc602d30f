"""Reliability in bins of equal counts: how often answers of about the same stated probability are correct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate
from medmllm_plugins.metrics.part_shares import part_shares

MIN_ANSWERS: Final = 10
"""Fewer answers are no bin."""
_ANSWERS_PER_BIN: Final = 20
_MAX_BINS: Final = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of about the same confidence.

    Attributes:
        n: number of answers.
        low: lowest confidence among them.
        high: highest confidence among them.
        confidence: mean confidence.
        accuracy: share of correct answers, with its interval.
    """

    n: int
    low: float
    high: float
    confidence: float
    accuracy: Estimate


def bin_members(confidence: Floats) -> list[NDArray[np.intp]]:
    """Divide answers into bins of about equal counts, lowest confidences first.

    There is one bin for every 20 answers, at most 10. Answers of equal confidence stay in one bin, and each bin has at
    least 10 answers; fewer than 10 answers make no bin.

    Args:
        confidence: (n,) probabilities of the answers.

    Returns:
        Indices of the answers in each bin.
    """
    n = len(confidence)
    if n < MIN_ANSWERS:
        return []
    order = np.argsort(confidence, kind="stable")
    ranked = confidence[order]
    count = min(_MAX_BINS, max(1, n // _ANSWERS_PER_BIN))
    borders = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1, [n]])
    cuts = [0]
    for index in range(1, count):
        nearest = int(borders[np.abs(borders - index * n / count).argmin()])
        if nearest - cuts[-1] >= MIN_ANSWERS and n - nearest >= MIN_ANSWERS:
            cuts.append(nearest)
    return [order[start:end] for start, end in zip(cuts, [*cuts[1:], n], strict=True)]


def reliability_bins(
    confidence: Floats, correct: Floats, group: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[ReliabilityBin]:
    """Return the reliability diagram in bins of equal counts; empty for fewer than 10 answers.

    Args:
        confidence: (n,) probability of each answer.
        correct: (n,) 1 for a correct answer, 0 for a wrong one.
        group: (n,) index of each document's group.
        resamples: bootstrap resamples of groups, for the intervals.
        seed: seed of the random generator.
    """
    members = bin_members(confidence)
    if not members:
        return []
    parts = np.zeros((len(members), len(confidence)), dtype=bool)
    for part, rows in zip(parts, members, strict=True):
        part[rows] = True
    shares = part_shares(correct, parts, group, resamples=resamples, seed=seed)
    return [
        ReliabilityBin(
            n=len(rows),
            low=float(confidence[rows].min()),
            high=float(confidence[rows].max()),
            confidence=float(confidence[rows].mean()),
            accuracy=accuracy,
        )
        for rows, accuracy in zip(members, shares, strict=True)
    ]
