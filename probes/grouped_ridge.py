"""Regularised least squares, cross-validated by group and refitted on permuted labels in closed form.

The predictions of a held-out document are a fixed linear combination of the labels of the others, whatever the labels
are. One matrix therefore gives the predictions for the real labels and for thousands of permuted ones, so that the
permutation tests are exact and refit the classifier each time.

The features of a document are standardised and limited to 5 standard deviations, and their squares are added, so that
differences of variance count like differences of the mean.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from medmllm_plugins.metrics.classification import Floats, Ints

FOLDS: Final = 5
PENALTY: Final = 0.01
"""Penalty, relative to the mean squared norm of a document's features times the number of documents fitted on."""
_LIMIT: Final = 5.0
_CELLS: Final = 4_000_000


def inner_products(features: npt.NDArray[np.float32]) -> Floats:
    """Return inner products of standardised features and their squares: (n, d) to (n, n), with mean 1 on the diagonal.

    No label takes part, so documents that are predicted later may be among them.
    """
    centred = features - features.mean(0, dtype=np.float64).astype(np.float32)
    deviation = centred.std(0)
    varying = deviation > 1e-6 * max(1e-12, float(np.abs(features).max(initial=0.0)))
    if not varying.any():
        return np.zeros((len(features), len(features)))
    standardised = np.clip(centred[:, varying] / deviation[varying], -_LIMIT, _LIMIT)
    squares = standardised**2
    squares -= squares.mean(0)
    squares /= np.maximum(squares.std(0), 1e-6)  # a feature of two values with equal shares has a constant square
    products: Floats = (standardised @ standardised.T + squares @ squares.T).astype(np.float64)
    products *= len(products) / np.trace(products)
    return products


def cross_validated_weights(products: Floats, group: Ints, *, seed: int = 0) -> Floats:
    """Return the weights (n, n) of each document's label in the predictions of the others.

    The groups are divided into folds at random; a document has weight 0 for its own group.

    Args:
        products: (n, n) inner products.
        group: (n,) groups, at least two.
        seed: divides the groups.
    """
    names, index = np.unique(group, return_inverse=True)
    folds = min(FOLDS, len(names))
    fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[index]
    weights: Floats = np.zeros_like(products)
    for number in range(folds):
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        weights[np.ix_(test, train)] = transfer_weights(products, train, test)
    return weights


def transfer_weights(products: Floats, train: Ints, test: Ints) -> Floats:
    """Return the weights (t, n) of the labels of n documents in the predictions of t others.

    The intercept is not penalised.

    Args:
        products: inner products of all documents.
        train: (n,) rows of ``products``.
        test: (t,) likewise.
    """
    among = products[np.ix_(train, train)]
    mean = among.mean(0)
    centred = among - mean - mean[:, None] + mean.mean()
    across = products[np.ix_(test, train)]
    across = across - across.mean(1, keepdims=True) - mean + mean.mean()
    penalised = centred + PENALTY * len(train) * np.eye(len(train))
    weights = np.linalg.solve(penalised, across.T).T
    solution: Floats = weights - weights.mean(1, keepdims=True) + 1 / len(train)
    return solution


def predict_classes(weights: Floats, labels: Ints, classes: int) -> Ints:
    """Predict classes, each weighted by the inverse of its share in the labels.

    Args:
        weights: (t, n).
        labels: (S, n) label sets.
        classes: number of classes, K.

    Returns:
        (S, t).
    """
    predicted = np.empty((len(labels), len(weights)), dtype=np.intp)
    at_once = max(1, _CELLS // (classes * max(weights.shape)))
    for start in range(0, len(labels), at_once):
        indicators = np.eye(classes)[labels[start : start + at_once]]  # (s, n, K)
        share = indicators.mean(1)[:, None]
        scores = np.tensordot(indicators, weights, (1, 1)).transpose(0, 2, 1)  # (s, t, K)
        relative = np.where(share > 0, scores / np.maximum(share, 1e-12), -np.inf)
        predicted[start : start + at_once] = relative.argmax(-1)
    return predicted


def auroc(weights: Floats, labels: Ints) -> Floats:
    """Return the area under the ROC curve of label 1 against 0, (S,), for label sets (S, n) of zeros and ones."""
    ranks = rankdata(weights @ labels.T.astype(np.float64), axis=0)
    positive = labels.sum(1)
    total = (ranks * labels.T).sum(0) - positive * (positive + 1) / 2
    area: Floats = total / (positive * (labels.shape[1] - positive))
    return area
