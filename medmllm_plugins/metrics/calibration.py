"""Whether the probabilities of label scores mean what they say, under many weightings of the documents at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints, Weights, ratio
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.utils.record import Record

BINS = 15
"""Bins of equal width between 0 and 1, as in Guo et al. 2017."""


def probabilities(scores: Floats) -> Floats:
    """Return the softmax of label scores, (n, K), over the classes."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    softmax: Floats = shifted / shifted.sum(1, keepdims=True)
    return softmax


@dataclass(frozen=True, slots=True)
class Bin(Record):
    """One bin of a reliability diagram.

    Attributes:
        low: lower end of its confidences.
        high: upper end of its confidences.
        n: documents in it.
        confidence: mean probability of the top class; ``null`` where there is none.
        accuracy: share of documents whose top class is the true one; ``null`` where there is none.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


class Calibration:
    """Expected calibration error of the top class, and Brier score.

    Sources: Guo et al., "On calibration of modern neural networks", 2017 (ECE); Brier, "Verification of forecasts
    expressed in terms of probability", 1950, in its multi-class form, from 0 to 2.

    Args:
        scores: (n, K) label scores, in nats.
        truth: (n,) indices of the true classes.
    """

    def __init__(self, scores: Floats, truth: Ints) -> None:
        p = probabilities(scores)
        rows = np.arange(len(p))
        self._confidence = p.max(1)
        self._right = (p.argmax(1) == truth).astype(np.float64)
        brier = (p**2).sum(1) - 2 * p[rows, truth] + 1
        # A confidence on the edge of two bins belongs to the lower one.
        self._bin = np.clip(np.ceil(self._confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)
        # Sorted by bin, so that the gap of a bin is one product over a stretch of documents.
        self._order: Ints = np.argsort(self._bin, kind="stable")
        self._gap = (self._right - self._confidence)[self._order]
        self._brier = brier[self._order]
        ends = np.cumsum(np.bincount(self._bin, minlength=BINS))
        self._stretches = [slice(end - n, end) for end, n in zip(ends, np.diff(ends, prepend=0), strict=True) if n]

    def __call__(self, weights: Weights) -> tuple[Floats, Floats]:
        """Compute both for weights of shape (n, B); expected calibration error and Brier score, (B,) float64 each."""
        ordered = weights.T.take(self._order, axis=1).astype(np.float64)
        total = ordered.sum(1)
        gaps = np.array([np.abs(ordered[:, part] @ self._gap[part]) for part in self._stretches])
        return ratio(gaps.sum(0), total), ratio(ordered @ self._brier, total)

    def table(self) -> tuple[Bin, ...]:
        """Return the reliability diagram: one entry a bin, lowest confidences first."""
        n = np.bincount(self._bin, minlength=BINS).astype(np.float64)
        confidence = ratio(np.bincount(self._bin, self._confidence, BINS).astype(np.float64), n)
        right = ratio(np.bincount(self._bin, self._right, BINS).astype(np.float64), n)
        return tuple(
            Bin(k / BINS, (k + 1) / BINS, int(n[k]), number(confidence[k]), number(right[k])) for k in range(BINS)
        )
