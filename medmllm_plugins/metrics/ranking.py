"""How well label scores rank documents, under many weightings of the documents at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics.classification import Floats, Ints, ratio


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


class WeightedRanking:
    """How well one score ranks: AUROC and average precision; sorted once, evaluated for any weights.

    AUROC is the probability that a positive document scores higher than a negative one, a tie counting one half (Mann
    and Whitney 1947; Hanley and McNeil 1982). Average precision is the mean precision at the rank of each positive,
    documents of equal scores sharing a rank (scikit-learn's ``average_precision_score``).

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
        # The first positive of each positive's run, among the positives.
        self._first: Ints = np.searchsorted(self._begin, self._begin, side="left")

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """Compute both.

        Args:
            weights: (n, B) float64, not negative; column b holds how often each document occurs in resample b.

        Returns:
            AUROC, (B,) float64, NaN where a column gives all its weight to positives, or all to negatives; average
            precision, (B,) float64, NaN where it gives none to positives.
        """
        area, mine, positive, above = self._auroc(weights)
        # Precision at each positive: of the weight that scores at least as high, the share of positives.
        lower = np.zeros((len(mine) + 1, weights.shape[1]))
        np.cumsum(mine, axis=0, out=lower[1:])
        reached = ratio(positive - lower[self._first], above)
        found = (mine * np.nan_to_num(reached)).sum(0)  # undefined only where nothing above has any weight
        return area, ratio(found, positive)

    def _auroc(self, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """AUROC; for each positive its weight, (P, B); their sum, (B,); and the weight not below each, (P, B)."""
        below = np.zeros((weights.shape[0] + 1, weights.shape[1]))
        np.cumsum(weights[self._order], axis=0, out=below[1:])
        mine = weights[self._positives]
        positive, total = mine.sum(0), below[-1]
        # Twice the weight below each positive, its ties counted half, positives included; among themselves the
        # positives contribute exactly positive**2, since every pair counts one in total.
        under = below[self._begin]
        wins = (mine * (under + below[self._end])).sum(0) - positive**2
        pairs = 2 * positive * (total - positive)
        return ratio(wins, pairs), mine, positive, total - under


class MacroRanking:
    """AUROC and average precision of label scores: means one-vs-rest over the classes present.

    Of two classes either has the same AUROC, so that mean is the AUROC of the positive class, whichever it is.

    Source: Provost and Domingos, "Well-trained PETs: improving probability estimation trees", 2000, in its
    unweighted (macro) form.

    Args:
        scores: (n, K) label scores, in nats.
        truth: (n,) indices of the true classes.
        only: rank this class alone.
    """

    def __init__(self, scores: Floats, truth: Ints, *, only: int | None = None) -> None:
        odds = log_odds(scores)
        ranked = np.unique(truth) if only is None else [only]
        self._rankings = [WeightedRanking(odds[:, k], truth == k) for k in ranked]

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """Compute AUROC and average precision for weights of shape (n, B); (B,) float64 each.

        The means run over the classes that occur in the resample; NaN where that is one class only.
        """
        areas, precisions = (np.stack(found) for found in zip(*(rank(weights) for rank in self._rankings), strict=True))
        defined = ~np.isnan(areas)
        return _mean(areas, defined), _mean(precisions, defined)


def _mean(values: Floats, defined: NDArray[np.bool_]) -> Floats:
    """Means over the first axis, of what is defined."""
    return ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0).astype(np.float64))
