"""How well label scores rank documents, under many weightings of the documents at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, owens_t
from scipy.stats import rankdata

from medmllm_plugins.metrics.classification import Floats, Ints, Weights, ratio


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
        score: (m,) float64, higher for documents more likely to be positive.
        positive: (m,) bool.
        rows: (m,) where in the weights each document stands; one after the other without it.
    """

    def __init__(self, score: Floats, positive: NDArray[np.bool_], *, rows: Ints | None = None) -> None:
        order: Ints = np.argsort(score, kind="stable")
        ranked = score[order]
        self._order: Ints = order if rows is None else rows[order]
        # Where the positives stand in the sorted order, and where the run of equal scores around each begins and ends.
        self._positives: Ints = np.flatnonzero(positive[order])
        self._begin: Ints = np.searchsorted(ranked, ranked[self._positives], side="left")
        self._end: Ints = np.searchsorted(ranked, ranked[self._positives], side="right")
        # The first positive of each positive's run, among the positives; all are their own where no two tie.
        self._first: Ints = np.searchsorted(self._begin, self._begin, side="left")
        self._tied = bool((self._end - self._begin > 1).any())

    def __call__(self, weights: Weights) -> tuple[Floats, Floats]:
        """Compute both.

        Args:
            weights: (n, B), not negative; column b holds how often each document occurs in resample b.

        Returns:
            AUROC, (B,) float64, NaN where a column gives all its weight to positives, or all to negatives; average
            precision, (B,) float64, NaN where it gives none to positives.
        """
        ranked = weights.T.take(self._order, axis=1)
        below = _sums_before(ranked)  # the weight before each document
        mine, under = ranked.take(self._positives, axis=1), below.take(self._begin, axis=1)
        hits_below = _sums_before(mine)
        total, positive = below[:, -1:], hits_below[:, -1:]
        # Precision at each positive: of the weight that scores at least as high, the share of positives. Where nothing
        # weighs anything, neither does this positive.
        lower = hits_below.take(self._first, axis=1) if self._tied else hits_below[:, :-1]
        reached = (positive - lower) / np.maximum(total - under, 1)
        precision = np.einsum("bp,bp->b", mine, reached)
        # Twice the weight below each positive, its ties counted half, positives included; among themselves the
        # positives contribute exactly positive**2, since every pair counts one in total. Floats hold the whole numbers
        # up to 2**53.
        under += below.take(self._end, axis=1) if self._tied else under + mine
        wins = np.einsum("bp,bp->b", mine, under, dtype=np.float64)
        positives, all_weights = positive[:, 0].astype(np.float64), total[:, 0].astype(np.float64)
        area = ratio(wins - positives**2, 2 * positives * (all_weights - positives))
        return area, ratio(precision, positives)


def auroc_variances(score: Floats, positive: NDArray[np.bool_], group: Ints) -> tuple[float, float]:
    """Return the variance of an AUROC that the documents show, and the one to be expected from all of their scores.

    Near 1 the observed variance rests on the few documents that are ranked wrongly, and is too low in most samples. The
    expected one is that of normal scores with the same AUROC, whose correlation within groups is that of the scores'
    ranks within their class; all documents contribute to it.

    Sources: Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997 (observed); Hanley
    and McNeil, "The meaning and use of the area under a ROC curve", 1982 (variance from pairs of documents); Owen,
    "Tables for computing bivariate normal probabilities", 1956 (of normal scores).

    Args:
        score: (m,) float64.
        positive: (m,) bool; both classes occur.
        group: (m,) index of each document's group.

    Returns:
        Both are 0 where all pairs are ranked correctly, or all wrongly.
    """
    group = np.unique(group, return_inverse=True)[1]
    placement, normal = np.empty(len(score)), np.empty(len(score))
    for members in (positive, ~positive):
        others = np.sort(score[~members])
        below = np.searchsorted(others, score[members], "left") + np.searchsorted(others, score[members], "right")
        placement[members] = below / (2 * len(others))
        normal[members] = ndtri((rankdata(score[members]) - 0.5) / members.sum())
    placement[~positive] = 1 - placement[~positive]
    positives, negatives = np.bincount(group, positive), np.bincount(group, ~positive)
    n_positive, n_negative = int(positives.sum()), int(negatives.sum())
    area = float(placement[positive].mean())
    if area in (0.0, 1.0):
        return 0.0, 0.0
    influence = (placement - area) / np.where(positive, n_positive, n_negative)
    observed = float((np.bincount(group, influence) ** 2).sum())
    spread, sizes = float((normal**2).mean()), positives + negatives
    between = float((np.bincount(group, normal) ** 2 / sizes).sum())
    within = (between / spread - len(sizes)) / max(len(score) - len(sizes), 1) if spread > 0 else 0.0
    correlation = min(1.0, max(0.0, within))

    def covariance(shared: float) -> float:
        """Return that of two comparisons whose differences of scores correlate by ``shared``."""
        return area - 2 * float(owens_t(ndtri(area), math.sqrt((1 - shared) / (1 + shared)))) - area**2

    pairs = (positives * (positives - 1)).sum() / n_positive**2 + (negatives * (negatives - 1)).sum() / n_negative**2
    mixed = (positives * negatives).sum() / (n_positive * n_negative)
    independent = (area * (1 - area) + (len(score) - 2) * covariance(0.5)) / (n_positive * n_negative)
    expected = independent + pairs * covariance(correlation / 2) + 2 * mixed * covariance(-correlation / 2)
    return observed, float(expected)


def _sums_before(weights: Weights) -> Weights:
    """Return cumulative sums along rows, (B, m) to (B, m + 1), the first of them 0."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=weights.dtype)
    np.cumsum(weights, axis=1, dtype=weights.dtype, out=sums[:, 1:])
    return sums


class MacroRanking:
    """AUROC and average precision of label scores: means one-vs-rest over the classes present.

    Of two classes either has the same AUROC, so that mean is the AUROC of the positive class, whichever it is.

    Source: Provost and Domingos, "Well-trained PETs: improving probability estimation trees", 2000, in its
    unweighted (macro) form.

    Args:
        scores: (n, K) label scores, in nats.
        truth: (n,) indices of the true classes.
        only: rank this class alone.
        rows: (n,) where in the weights each document stands; one after the other without it.
    """

    def __init__(self, scores: Floats, truth: Ints, *, only: int | None = None, rows: Ints | None = None) -> None:
        odds = log_odds(scores)
        ranked = np.unique(truth) if only is None else [only]
        self._rankings = [WeightedRanking(odds[:, k], truth == k, rows=rows) for k in ranked]
        self._scores = [(odds[:, k], truth == k) for k in ranked]

    def __call__(self, weights: Weights) -> tuple[Floats, Floats]:
        """Compute AUROC and average precision for weights of shape (n, B); (B,) float64 each.

        The means run over the classes that occur in the resample; NaN where that is one class only.
        """
        areas, precisions = (
            np.stack(values) for values in zip(*(rank(weights) for rank in self._rankings), strict=True)
        )
        defined = ~np.isnan(areas)
        return _mean(areas, defined), _mean(precisions, defined)

    def inflation(self, group: Ints) -> float:
        """Return by how much the variance of the AUROC is to be enlarged, at least 1; see :func:`auroc_variances`.

        Args:
            group: (n,) index of each document's group.
        """
        variances = [
            auroc_variances(score, positive, group)
            for score, positive in self._scores
            if positive.any() and not positive.all()
        ]
        observed = sum(variance for variance, _ in variances)
        return sum(map(max, variances)) / observed if observed > 0 else 1.0


def _mean(values: Floats, defined: NDArray[np.bool_]) -> Floats:
    """Return means over the first axis, of what is defined."""
    return ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0).astype(np.float64))
