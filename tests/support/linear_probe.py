"""The scale of features in a linear probe and the choice of its strength, by plain numpy and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import balanced_accuracy_score, log_loss


def scaled(train: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows (n, D) minus the mean of the train rows, divided by the root mean square of the norms of the train rows."""
    centre = train.astype(np.float64).mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
    result: npt.NDArray[np.float64] = (rows - centre) / scale
    return result


def one_standard_error(
    probabilities: Sequence[npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    group: npt.NDArray[Any],
    train_labels: npt.NDArray[Any],
    train_weights: npt.NDArray[Any] | None = None,
) -> int:
    """Index of the strength that the one-standard-error rule chooses, from stiff to free, for probabilities (V, K)."""
    classes = probabilities[0].shape[1]
    losses = [-np.log(table[np.arange(len(labels)), labels]) for table in probabilities]
    best = int(np.argmin([loss.mean() for loss in losses]))
    frequencies = np.bincount(train_labels, train_weights, minlength=classes)
    constant = np.tile(frequencies / frequencies.sum(), (len(labels), 1))
    for index, loss in enumerate(losses):
        difference = loss - losses[best]
        sums = [(difference - difference.mean())[group == number].sum() for number in np.unique(group)]
        error = np.sqrt(len(sums) * np.var(sums, ddof=1)) / len(labels)
        beats = loss.mean() < log_loss(labels, constant, labels=range(classes)) and (
            balanced_accuracy_score(labels, probabilities[index].argmax(1)) > 1 / len(np.unique(labels)) + 1e-6
        )
        if difference.mean() <= error and beats:
            return index
    return best
