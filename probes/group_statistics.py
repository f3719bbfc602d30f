"""Balanced accuracies and p-values for documents that belong to groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, SHARE, Estimate, bootstrap, effective_groups, estimate


@dataclass(frozen=True, slots=True, eq=False)
class BalancedAccuracy:
    """A balanced accuracy.

    Attributes:
        value: of all documents.
        resampled: (B,) of bootstrap resamples of the groups.
        groups: number of groups of equal size that vary as much.
    """

    value: float
    resampled: Floats
    groups: float

    @classmethod
    def of(cls, predicted: Ints, truth: Ints, group: Ints, seed: int) -> BalancedAccuracy:
        """Compute it from predicted and true classes and groups, (n,) each."""
        members = np.eye(int(truth.max()) + 1)[truth].T
        members = members[members.any(1)]
        correct = members * (predicted == truth)

        def evaluate(weights: Weights) -> dict[str, Floats]:
            with np.errstate(invalid="ignore", divide="ignore"):
                return {"balanced": np.nanmean((correct @ weights) / (members @ weights), axis=0)}

        index = np.unique(group, return_inverse=True)[1]
        values, resampled = bootstrap(evaluate, index, resamples=RESAMPLES, seed=seed, cells=2 * len(truth))
        return cls(float(values["balanced"]), resampled["balanced"], effective_groups(index))

    def estimate(self) -> Estimate:
        """Return the value with its interval."""
        return estimate(self.value, self.resampled, groups=self.groups, bounds=SHARE)


def draw_groups(group: Ints, rows: Ints, max_documents: int, generator: np.random.Generator) -> Ints:
    """Return the rows of whole groups that are drawn at random, up to a number of documents but at least two groups."""
    names, index = np.unique(group[rows], return_inverse=True)
    rank = generator.permutation(len(names))[index]
    limit = int(np.searchsorted(np.cumsum(np.bincount(rank)), max_documents, side="right"))
    drawn: Ints = np.sort(rows[rank < max(limit, min(2, len(names)))])
    return drawn


def permutation_p_value(statistics: Floats) -> float:
    """Return the share of permutations that are as high as the first; rounding must not make an equal one lower."""
    return float((statistics >= statistics[0] - 1e-9).mean())


def one_sided_p_value(value: float, resampled: Floats, groups: float) -> float:
    """Return the p-value of a difference above 0, by its standard error over the resamples and Student's t."""
    error = float(np.nanstd(resampled))
    if groups <= 1 or error == 0:
        return 1.0
    return float(stdtr(groups - 1, -value / error))
