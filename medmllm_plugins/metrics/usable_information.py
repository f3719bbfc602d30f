"""Usable information: by how many bits a classifier's predictions of the class beat the class frequencies.

Source: Xu et al., "A Theory of Usable Information Under Computational Constraints", ICLR 2020 (arXiv 2002.10689).
V-information is the lowest expected log loss of a family of predictors that ignore the input, minus the lowest of
predictors that use it. Here the family is that of the fitted probes, and both losses are measured on held-out
documents, so an overfitted probe can have less than no information.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medmllm_plugins.metrics.classification import Floats, Ints

_UNSEEN = 0.5
"""Documents that a class without train documents counts as."""


def class_log_frequencies(train: Ints, classes: int) -> Floats:
    """Return the natural logarithm of each class's frequency, (K,), among train documents (n,)."""
    counts = np.maximum(np.bincount(train, minlength=classes), _UNSEEN)
    logs: Floats = np.log(counts / counts.sum())
    return logs


def information_of_probabilities(
    log_p: Floats | npt.NDArray[np.float32], truth: Ints, log_frequencies: Floats
) -> Floats:
    """Return the contribution of each document to the usable information of predicted probabilities.

    The mean over documents is the usable information; NaN where a probability is unknown.

    Args:
        log_p: (..., n, K) natural logarithms of the predicted probabilities.
        truth: (n,) true class.
        log_frequencies: (K,), see :func:`class_log_frequencies`.

    Returns:
        (..., n) float64, in bits.
    """
    true = np.asarray(log_p, dtype=np.float64)[..., np.arange(len(truth)), truth]
    bits: Floats = (true - log_frequencies[truth]) / math.log(2)
    return bits


def information_of_answers(answers: Ints, truth: Ints, group: Ints, log_frequencies: Floats) -> Floats:
    """Return each document's contribution to the usable information of answers, or of other predicted classes.

    The probability of a class given an answer is estimated from the documents of all other groups, with as many
    additional documents as there are classes, distributed by the class frequencies. What is renamed consistently keeps
    its information.

    Args:
        answers: (n,) answered class, from 0; a negative number for an unparsed answer, which counts as a class of its
            own.
        truth: (n,) true class.
        group: (n,) integer, equal within a group.
        log_frequencies: (K,), see :func:`class_log_frequencies`.

    Returns:
        (n,) float64, in bits.
    """
    classes = len(log_frequencies)
    answered = np.where(answers < 0, classes, answers)
    counts = np.zeros((classes + 1, classes))
    np.add.at(counts, (answered, truth), 1)
    _, member = np.unique(group, return_inverse=True)
    own = np.zeros((int(member.max()) + 1, classes + 1, classes))
    np.add.at(own, (member, answered, truth), 1)
    others = counts[answered] - own[member, answered] + classes * np.exp(log_frequencies)
    log_p = np.log(others / others.sum(1, keepdims=True))
    return information_of_probabilities(log_p, truth, log_frequencies)
