"""The interface of reference classifiers, and the one that ignores the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from medmllm_plugins.reference.labelled_images import LabelledImages, LogProbabilities


class ReferenceClassifier(ABC):
    """A classifier that is trained on one fold and tuned on another; it never sees the test fold."""

    @abstractmethod
    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Train on ``train``; choose settings, such as regularisation or when to stop, on ``validation``.

        There is at least one document in each, in ``validation`` where :attr:`chooses` is true.

        Raises:
            DataError: the examples cannot be learned from.
        """

    @abstractmethod
    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """Return the log probability of each answer, ``[N, Q, A]``, finite."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return what the manifest records about it, as JSON types."""

    @property
    def chooses(self) -> bool:
        """Whether it needs a validation fold."""
        return True


class Majority(ReferenceClassifier):
    """Predicts the class frequencies of the train fold, and so always the most common class."""

    def __init__(self) -> None:
        """Create an untrained classifier."""
        self._shares: LogProbabilities = np.zeros((0, 0))

    @property
    def chooses(self) -> bool:
        """Return false: there are no settings to choose."""
        return False

    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Count the answers of the train fold."""
        self._shares = log_shares(train)

    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """Return the same frequencies for every document."""
        return np.repeat(self._shares[None], len(examples), axis=0)

    def facts(self) -> Mapping[str, Any]:
        """Return the frequencies."""
        return {"shares": np.exp(self._shares).round(6).tolist()}


def log_shares(examples: LabelledImages) -> LogProbabilities:
    """Return the log frequency of each answer, ``[Q, A]``, with half a document added to each so that it is finite."""
    targets = examples.targets()
    counts = np.stack([np.bincount(column, minlength=len(examples.answers)) for column in targets.T]) + 0.5
    return np.asarray(np.log(counts / counts.sum(axis=1, keepdims=True)))
