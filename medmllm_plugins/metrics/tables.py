"""Outcomes as arrays: confusion counts under any weights, and matrices of label scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medmllm_plugins.metrics import classification
from medmllm_plugins.metrics.classification import Floats, Ints
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
    document are stored, so many groups and many classes cost no memory.
    """

    def __init__(self, truth: Ints, answer: Ints, classes: int) -> None:
        cell = truth * (classes + 1) + answer
        self._order: Ints = np.argsort(cell, kind="stable")
        self._cells, self._starts = np.unique(cell[self._order], return_index=True)
        self._classes = classes

    def __call__(self, weights: Floats) -> Floats:
        """Tables of shape (B, K, K + 1) for weights of shape (n, B)."""
        counts = np.zeros((weights.shape[1], self._classes * (self._classes + 1)))
        counts[:, self._cells] = np.add.reduceat(weights[self._order], self._starts, axis=0).T
        return counts.reshape(-1, self._classes, self._classes + 1)


def score_matrix(outcomes: Sequence[Outcome]) -> Floats | None:
    """Label scores as (n, K) float64; ``None`` unless every outcome has them."""
    scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    return np.array(scores, dtype=np.float64) if outcomes and len(scores) == len(outcomes) else None
