"""Metrics of hard answers, computed from confusion counts.

Every metric takes ``counts`` of shape (..., K, K + 1), float64: rows are the K true classes, the first K columns the
predicted classes in the same order, and the last column the answers that were not parsed. Leading axes are independent
tables (one a resample). A ratio with nothing to divide by is NaN unless the function says otherwise.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.intp]
Weights: TypeAlias = NDArray[np.float64] | NDArray[np.int64] | NDArray[np.int32]
"""How often each document occurs in each resample, (n, B)."""


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return ``numerator / denominator``, NaN where the denominator is 0; shapes broadcast."""
    value: Floats = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=value, where=denominator > 0)
    return value


def accuracy(counts: Floats) -> Floats:
    """Return the share of correct answers among all; an answer that was not parsed is wrong. Shape (...)."""
    return ratio(_hits(counts).sum(-1), counts.sum((-2, -1)))


def parsed_share(counts: Floats) -> Floats:
    """Return the share of answers that were parsed, whether correct or wrong. Shape (...)."""
    return ratio(counts[..., :-1].sum((-2, -1)), counts.sum((-2, -1)))


def accuracy_on_parsed(counts: Floats) -> Floats:
    """Return the share of correct answers among the parsed ones; NaN where none was. Shape (...)."""
    return ratio(_hits(counts).sum(-1), counts[..., :-1].sum((-2, -1)))


def sensitivity(counts: Floats) -> Floats:
    """Return the recall of each class; an answer that was not parsed is a miss. Shape (..., K)."""
    return ratio(_hits(counts), counts.sum(-1))


def specificity(counts: Floats) -> Floats:
    """Return, among documents of all other classes, the share answered with another class than this. Shape (..., K).

    An answer that was not parsed counts as wrong here too, else refusing everything would be perfectly specific. So
    with two classes the specificity of one is the sensitivity of the other.
    """
    parsed_elsewhere = _others(counts[..., :-1].sum(-1))
    false_positives = counts[..., :-1].sum(-2) - _hits(counts)
    return ratio(parsed_elsewhere - false_positives, _others(counts.sum(-1)))


def precision(counts: Floats) -> Floats:
    """Return the share of correct answers among those that name the class; NaN where none does. Shape (..., K)."""
    return ratio(_hits(counts), counts[..., :-1].sum(-2))


def f1(counts: Floats) -> Floats:
    """Return F1 of each class, 2 TP / (2 TP + FP + FN). Shape (..., K).

    0 for a class that is never answered; NaN only where it is neither true nor answered.
    """
    return ratio(2 * _hits(counts), counts.sum(-1) + counts[..., :-1].sum(-2))


def balanced_accuracy(counts: Floats) -> Floats:
    """Return the mean recall over the classes that occur among the true labels. Shape (...)."""
    return _mean_over_present(sensitivity(counts), counts)


def macro_f1(counts: Floats) -> Floats:
    """Return the mean F1 over the classes that occur among the true labels. Shape (...).

    A class that is never answered stays in with F1 0. A class that is answered but never true has no F1 of its own; the
    answers naming it are misses of their true classes. The same holds for answers that were not parsed.
    """
    return _mean_over_present(f1(counts), counts)


def matthews(counts: Floats) -> Floats:
    """Return the multi-class Matthews correlation, answers not parsed being a category of their own. Shape (...).

    0 where there is one true class or one kind of answer only, as in scikit-learn. Source: Gorodkin, "Comparing two
    K-category assignments by a K-category correlation coefficient", 2004.
    """
    total = counts.sum((-2, -1))
    true, answered = counts.sum(-1), counts.sum(-2)
    covariance = _hits(counts).sum(-1) * total - (true * answered[..., :-1]).sum(-1)
    spread = (total**2 - (true**2).sum(-1)) * (total**2 - (answered**2).sum(-1))
    defined = spread > 0
    value = np.where(defined, covariance / np.sqrt(np.where(defined, spread, 1.0)), 0.0)
    clipped: Floats = np.clip(value, -1.0, 1.0)  # rounding can leave a perfect score a hair above 1
    return clipped


def quadratic_kappa(counts: Floats) -> Floats:
    """Return the quadratically weighted kappa of ordered classes, their agreement beyond chance. Shape (...).

    In the observed disagreement an answer that was not parsed is as far from the truth as an answer can be, so that
    refusing does not pay; the disagreement expected by chance is that of the parsed answers. NaN where no answer was
    parsed, or all documents have one class and one answer. Source: Cohen, "Weighted kappa", 1968.
    """
    classes = counts.shape[-2]
    rank = np.arange(classes, dtype=np.float64)
    weight = np.empty((classes, classes + 1))
    weight[:, :-1] = (rank[:, None] - rank[None, :]) ** 2
    weight[:, -1] = np.maximum(rank, classes - 1 - rank) ** 2
    true, answered = counts.sum(-1), counts[..., :-1].sum(-2)
    expected = ratio(np.einsum("...i,...j,ij->...", true, answered, weight[:, :-1]), answered.sum(-1))
    value: Floats = 1.0 - ratio((counts * weight).sum((-2, -1)), expected)
    return value


def _hits(counts: Floats) -> Floats:
    diagonal: Floats = np.diagonal(counts, axis1=-2, axis2=-1)
    return diagonal


def _others(of_class: Floats) -> Floats:
    others: Floats = of_class.sum(-1, keepdims=True) - of_class
    return others


def _mean_over_present(of_class: Floats, counts: Floats) -> Floats:
    present = counts.sum(-1) > 0
    return ratio(np.where(present, of_class, 0.0).sum(-1), present.sum(-1).astype(np.float64))
