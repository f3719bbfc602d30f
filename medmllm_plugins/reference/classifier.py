"""What every reference classifier offers, and the one that looks at nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from medmllm_plugins.reference.labelled_images import LabelledImages, LogProbabilities


class ReferenceClassifier(ABC):
    """A classifier that learns from one fold and makes its choices on another; it never sees a third."""

    @abstractmethod
    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Learn from ``train``; choose settings, such as regularisation or when to stop, on ``validation``.

        Args:
            train: at least one document.
            validation: at least one document where :attr:`chooses` is true.

        Raises:
            DataError: the examples cannot be learned from.
        """

    @abstractmethod
    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """Log probability of each answer, ``[N, Q, A]``, finite."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What the manifest tells about it: JSON-safe."""

    @property
    def chooses(self) -> bool:
        """Whether it needs a validation fold."""
        return True


class Majority(ReferenceClassifier):
    """Answers with the shares of the train fold, whatever the image: the most frequent class always."""

    def __init__(self) -> None:
        """Begin without shares."""
        self._shares: LogProbabilities = np.zeros((0, 0))

    @property
    def chooses(self) -> bool:
        """It has no settings."""
        return False

    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Count the answers of the train fold."""
        self._shares = log_shares(train)

    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """The same for every document."""
        return np.repeat(self._shares[None], len(examples), axis=0)

    def facts(self) -> Mapping[str, Any]:
        """The shares."""
        return {"shares": np.exp(self._shares).round(6).tolist()}


def log_shares(examples: LabelledImages) -> LogProbabilities:
    """Logarithm of each answer's share, ``[Q, A]``; half a document is added to each, so that none is infinite."""
    targets = examples.targets()
    counts = np.stack([np.bincount(column, minlength=len(examples.answers)) for column in targets.T]) + 0.5
    return np.asarray(np.log(counts / counts.sum(axis=1, keepdims=True)))
