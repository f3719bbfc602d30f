"""Area under the ROC curve of label scores, under many weightings of the documents at once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics.classification import Floats, ratio

Ints: TypeAlias = NDArray[np.intp]


def log_odds(scores: Floats) -> Floats:
    """Log odds of each class against all others under the softmax of the label scores.

    They rank documents as the softmax probabilities do, but do not saturate: two documents whose probabilities both
    round to 1 keep their order.

    Args:
        scores: (n, K) with K >= 2, log p(label | prompt, image), in nats.

    Returns:
        (n, K), in nats.
    """
    classes = scores.shape[1]
    shifted = scores - scores.max(1, keepdims=True)
    odds: Floats = np.empty_like(shifted)
    for k in range(classes):
        others = np.delete(shifted, k, axis=1)
        # Subtracting their own maximum keeps the sum from vanishing where class k holds nearly all the mass.
        top = others.max(1)
        odds[:, k] = shifted[:, k] - top - np.log(np.exp(others - top[:, None]).sum(1))
    return odds


class WeightedAUROC:
    """Area under the ROC curve of one score; sorted once, evaluated for any weights.

    The area is the probability that a positive document scores higher than a negative one, a tie counting one half
    (Mann and Whitney 1947; Hanley and McNeil 1982).

    Args:
        score: (n,) float64, higher for documents more likely to be positive.
        positive: (n,) bool.
    """

    def __init__(self, score: Floats, positive: NDArray[np.bool_]) -> None:
        self._order: Ints = np.argsort(score, kind="stable")
        ranked = score[self._order]
        at: Ints = np.flatnonzero(positive[self._order])
        self._positives: Ints = self._order[at]
        # Where the run of equal scores around each positive begins and ends, in the sorted order.
        self._begin: Ints = np.searchsorted(ranked, ranked[at], side="left")
        self._end: Ints = np.searchsorted(ranked, ranked[at], side="right")

    def __call__(self, weights: Floats) -> Floats:
        """Compute the area.

        Args:
            weights: (n, B) float64, not negative; column b holds how often each document occurs in resample b.

        Returns:
            (B,) float64; NaN where a column gives all its weight to positives, or all to negatives.
        """
        below = np.zeros((weights.shape[0] + 1, weights.shape[1]))
        np.cumsum(weights[self._order], axis=0, out=below[1:])
        mine = weights[self._positives]
        positive, total = mine.sum(0), below[-1]
        # Twice the weight below each positive, its ties counted half, positives included; among themselves the
        # positives contribute exactly positive**2, since every pair counts one in total.
        wins = (mine * (below[self._begin] + below[self._end])).sum(0) - positive**2
        pairs = 2 * positive * (total - positive)
        return ratio(wins, pairs)


class MacroAUROC:
    """AUROC of label scores: the mean one-vs-rest over the classes present.

    Of two classes either has the same area, so that mean is the AUROC of the positive class, whichever it is.

    Source: Provost and Domingos, "Well-trained PETs: improving probability estimation trees", 2000, in its
    unweighted (macro) form.

    Args:
        scores: (n, K) label scores, in nats.
        truth: (n,) indices of the true classes.
    """

    def __init__(self, scores: Floats, truth: Ints) -> None:
        odds = log_odds(scores)
        classes = [1] if scores.shape[1] == 2 else [int(k) for k in np.unique(truth)]
        self._areas = [WeightedAUROC(odds[:, k], truth == k) for k in classes]

    def __call__(self, weights: Floats) -> Floats:
        """Compute it for weights of shape (n, B); (B,) float64.

        The mean runs over the classes that occur in the resample; NaN where that is one class only.
        """
        areas = np.stack([area(weights) for area in self._areas])
        defined = ~np.isnan(areas)
        return ratio(np.where(defined, areas, 0.0).sum(0), defined.sum(0).astype(np.float64))
