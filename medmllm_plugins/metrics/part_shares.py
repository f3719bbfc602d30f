"""Shares of correct answers in parts of the documents, such as bins of confidence or subgroups, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medmllm_plugins.metrics.classification import Floats, Ints, Weights, ratio
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)


def part_shares(
    correct: Floats, parts: NDArray[np.bool_], group: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """Return the share of correct answers in each part, with an interval that respects groups.

    Groups of the whole sample are drawn, so a part has another number of documents in each resample. The interval is
    Wilson's for the sample size at which a share would vary as much, see
    :func:`medmllm_plugins.metrics.intervals.estimate`. Where every document is a group of its own, it is close to
    Wilson's interval of the part's documents.

    Args:
        correct: (n,) 1 for a correct answer, 0 for a wrong one.
        parts: (P, n) which documents belong to each part; parts may overlap.
        group: (n,) index of each document's group.
        resamples: bootstrap resamples.
        seed: seed of the random generator.

    Returns:
        One estimate for each part, NaN for a part without documents.
    """
    _, group = np.unique(group, return_inverse=True)
    members = parts.astype(np.float64)
    hits = members * correct

    def evaluate(weights: Weights) -> dict[str, Floats]:
        drawn = weights.astype(np.float64)
        return {"share": ratio(hits @ drawn, members @ drawn).T}

    values, resampled = bootstrap(evaluate, group, resamples=resamples, seed=seed, cells=len(parts))
    return [
        estimate(
            float(values["share"][index]),
            resampled["share"][:, index],
            groups=effective_groups(np.unique(group[part], return_inverse=True)[1]) if part.any() else 0.0,
            bounds=SHARE,
            inflation=float(size_inflation(correct[part], group[part])) if part.any() else 1.0,
        )
        for index, part in enumerate(parts)
    ]
