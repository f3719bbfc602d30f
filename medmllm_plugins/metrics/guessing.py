"""What answering without looking at the image would score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, accuracy, balanced_accuracy, macro_f1, matthews

GUESSES: Final = {
    "majority_class": "always guessing the most common class",
    "always_no": "always answering no",
}
"""Constant answers by their names among the baselines."""


def majority_class(support: Floats) -> int:
    """Return the index of the most frequent class, given (K,) numbers of documents; the first of several."""
    return int(np.argmax(support))


def baselines(support: Floats) -> dict[str, dict[str, float]]:
    """Return the scores of answering blindly.

    Args:
        support: (K,) number of documents of each true class, at least one of them positive.

    Returns:
        By baseline and metric: ``majority_class``, which always answers the most frequent class (``accuracy``,
        ``balanced``, ``macro_f1``, ``mcc``); ``uniform_random``, expected scores of drawing each of the K classes with
        probability 1 / K (``accuracy``, ``balanced``); ``prior_matched_random``, expected ``accuracy`` of drawing
        class k with its share p_k, the sum of p_k squared.
    """
    classes = support.size
    counts = np.zeros((classes, classes + 1))
    counts[:, majority_class(support)] = support
    return {
        "majority_class": {
            "accuracy": float(accuracy(counts)),
            "balanced": float(balanced_accuracy(counts)),
            "macro_f1": float(macro_f1(counts)),
            "mcc": float(matthews(counts)),
        },
        "uniform_random": {"accuracy": 1 / classes, "balanced": 1 / classes},
        "prior_matched_random": {"accuracy": float(((support / support.sum()) ** 2).sum())},
    }


def constant_guess(baselines: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """Return name and accuracy of the best constant answer among baselines; an empty name and NaN without one."""
    for name in GUESSES:
        accuracy = baselines.get(name, {}).get("accuracy", math.nan)
        if not math.isnan(accuracy):
            return name, accuracy
    return "", math.nan
