"""Outcomes as arrays: confusion counts under any weights, and matrices of label scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.outcomes import Outcome

OVERALL: dict[str, Callable[[Floats], Floats]] = {
    "accuracy": classification.accuracy,
    "balanced": classification.balanced_accuracy,
    "macro_f1": classification.macro_f1,
    "mcc": classification.matthews,
    "parsed": classification.parsed_share,
}
"""Metrics of hard answers, each from confusion counts."""
SCORED = ("auroc", "auprc", "ece", "brier")
"""Metrics that label scores allow, and hard answers do not."""


class Tables:
    """Confusion counts under any document weights.

    Documents are sorted by cell once, and a resample's table is the sum of weights in each cell; only cells that hold a
    document are stored, so that many groups and classes cost no memory.

    Args:
        truth: (m,) indices of the true classes, m >= 1.
        answer: (m,) indices of the answered classes, K for an answer that was not parsed.
        classes: K.
        rows: (m,) where in the weights each document stands; one after the other without it.
    """

    def __init__(self, truth: Ints, answer: Ints, classes: int, *, rows: Ints | None = None) -> None:
        cell = truth * (classes + 1) + answer
        order: Ints = np.argsort(cell, kind="stable")
        self._cells, self._starts = np.unique(cell[order], return_index=True)
        self._order: Ints = order if rows is None else rows[order]
        self._classes = classes

    def __call__(self, weights: Weights) -> Floats:
        """Return tables of shape (B, K, K + 1) for weights of shape (n, B)."""
        counts = np.zeros((weights.shape[1], self._classes * (self._classes + 1)))
        sums = np.add.reduceat(weights.T.take(self._order, axis=1), self._starts, axis=1, dtype=weights.dtype)
        counts[:, self._cells] = sums
        return counts.reshape(-1, self._classes, self._classes + 1)


class Distinct:
    """Documents that are alike in all that is counted, taken together.

    Args:
        columns: (n,) whole numbers from 0 each: true class, answers.
    """

    def __init__(self, *columns: Ints) -> None:
        code: Ints = np.zeros(len(columns[0]), dtype=np.intp)
        for column in columns:
            # Renumbered after each column, so that the product of many cannot overflow.
            _, code = np.unique(code * (int(column.max()) + 1) + column, return_inverse=True)
        self._order: Ints = np.argsort(code, kind="stable")
        _, self._starts = np.unique(code[self._order], return_index=True)
        self._first: Ints = self._order[self._starts]

    def of(self, column: Ints) -> Ints:
        """Return the value of each kind of documents in a column, (m,)."""
        return column[self._first]

    def __call__(self, weights: Weights) -> Weights:
        """Return the weights of the kinds, (m, B), for weights of documents, (n, B)."""
        return np.add.reduceat(weights.T.take(self._order, axis=1), self._starts, axis=1, dtype=weights.dtype).T


def score_matrix(outcomes: Sequence[Outcome]) -> Floats | None:
    """Label scores as (n, K) float64; ``None`` unless every outcome has them."""
    scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    return np.array(scores, dtype=np.float64) if outcomes and len(scores) == len(outcomes) else None
