"""What label scores lose under conditions, with clustered intervals; all of them on the same resamples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
)
from medmllm_plugins.metrics.paired_difference import paired_difference

Condition = TypeVar("Condition", bound=Hashable)
Rows = Sequence[tuple[float, ...]]
"""Log-probabilities of the labels, in nats, document by document."""


@dataclass(frozen=True, slots=True)
class PairedLoss:
    """The effect of one condition.

    Attributes:
        accuracy: accuracy of the label that scores highest.
        lost: accuracy of the model as it is minus that, paired.
        log_odds_lost: the same of the mean log-odds of the correct label against all others, in nats.
    """

    accuracy: Estimate
    lost: Estimate
    log_odds_lost: Estimate


def paired_losses(
    own: Rows, scores: Mapping[Condition, Rows], truth: Ints, group: Ints, *, seed: int = 0
) -> tuple[Estimate, dict[Condition, PairedLoss]]:
    """Measure what label scores lose under each condition.

    Args:
        own: scores of the model as it is.
        scores: scores under each condition.
        truth: (n,) classes.
        group: (n,) groups of the documents.
        seed: of the bootstrap resamples.

    Returns:
        The accuracy of the model as it is, and the loss by condition.
    """
    _, group = np.unique(group, return_inverse=True)
    group = group.astype(np.intp)
    rows = np.concatenate([_per_document(some, truth) for some in (own, *scores.values())])
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T},
        group,
        resamples=RESAMPLES,
        seed=seed,
        cells=len(rows),
    )
    means, drawn, groups = values[""], resampled[""], effective_groups(group)

    def accuracy(index: int) -> Estimate:
        return estimate(float(means[2 * index]), drawn[:, 2 * index], groups=groups, bounds=SHARE)

    whole = accuracy(0)
    losses: dict[Condition, PairedLoss] = {}
    for index, condition in enumerate(scores, start=1):
        left, odds = accuracy(index), 2 * index + 1
        losses[condition] = PairedLoss(
            accuracy=left,
            lost=paired_difference(rows[0] - rows[2 * index], drawn[:, 0] - drawn[:, 2 * index], group),
            log_odds_lost=estimate(float(means[1] - means[odds]), drawn[:, 1] - drawn[:, odds], groups=groups),
        )
    return whole, losses


def _per_document(rows: Rows, truth: Ints) -> Floats:
    """Return hits and log-odds of the correct label, (2, n)."""
    values, documents = np.array(rows, dtype=np.float64), np.arange(len(truth))
    others = values.copy()
    others[documents, truth] = -np.inf
    odds = values[documents, truth] - logsumexp(others, axis=1)
    result: Floats = np.stack([(values.argmax(1) == truth).astype(np.float64), odds])
    return result
