"""Risk against coverage: accuracy of the rest when the least confident answers are referred to a reader.

Sources: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11, 2010 (risk against
coverage); Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019
(area under the curve).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

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

REFERRED: Final = tuple(step / 40 for step in range(21))
"""Shares of the answers that are referred: 0 to 50% in steps of 2.5%."""


@dataclass(frozen=True, slots=True)
class Referral:
    """Accuracy of the answers that are kept.

    Attributes:
        referred: shares of the answers that are referred.
        accuracy: accuracy of the others, for each share.
        area: area under the curve of risk (share of wrong answers) against coverage, over all coverages; lower is
            better.
    """

    referred: tuple[float, ...]
    accuracy: tuple[Estimate, ...]
    area: Estimate


class ReferralCurve:
    """Accuracy of the most confident answers, sorted once and evaluated under any weights of the documents.

    Answers of equal confidence are kept or referred in equal shares, so that their order does not count.

    Args:
        confidence: (n,) higher for answers that are referred later.
        correct: (n,) 1 for a correct answer, 0 for a wrong one.
        referred: shares of the answers that are referred, each below 1.
    """

    def __init__(self, confidence: Floats, correct: Floats, referred: tuple[float, ...] = REFERRED) -> None:
        order: Ints = np.argsort(-confidence, kind="stable")
        ranked = confidence[order]
        self._order = order
        self._starts: Ints = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1]).astype(np.intp)
        self._correct = correct[order]
        self._kept = 1 - np.array(referred)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return ``accuracy``, (B, number of shares), and ``area``, (B,), for weights (n, B)."""
        ranked = weights.T.take(self._order, axis=1).astype(np.float64)
        sizes = np.add.reduceat(ranked, self._starts, axis=1)
        hits = np.add.reduceat(ranked * self._correct, self._starts, axis=1)
        reached, hits_reached = np.cumsum(sizes, axis=1), np.cumsum(hits, axis=1)
        accuracy = np.stack(
            [
                np.interp(self._kept * row[-1], np.append(0.0, row), np.append(0.0, hit)) / (self._kept * row[-1])
                for row, hit in zip(reached, hits_reached, strict=True)
            ]
        )
        return {"accuracy": accuracy, "area": self._area(ranked, sizes, hits)}

    def _area(self, ranked: Floats, sizes: Floats, hits: Floats) -> Floats:
        """Return the mean risk of the answers down to each one, over all answers, ties counted at their mean."""
        block_risk = 1 - ratio(hits, sizes)
        lengths = np.diff(np.append(self._starts, ranked.shape[1]))
        wrong = np.nan_to_num(np.repeat(block_risk, lengths, axis=1)) * ranked
        risk = ratio(np.cumsum(wrong, axis=1), np.cumsum(ranked, axis=1))
        return ratio((ranked * np.nan_to_num(risk)).sum(1), ranked.sum(1))


def referral(
    confidence: Floats, correct: Floats, group: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Referral:
    """Return accuracy when the least confident answers are referred to a reader, with intervals over groups.

    In each resample the least confident answers of that resample are referred.

    Args:
        confidence: (n,) probability of each answer.
        correct: (n,) 1 for a correct answer, 0 for a wrong one.
        group: (n,) index of each document's group.
        resamples: bootstrap resamples.
        seed: seed of the random generator.
    """
    _, group = np.unique(group, return_inverse=True)
    curve = ReferralCurve(confidence, correct)
    values, resampled = bootstrap(curve, group, resamples=resamples, seed=seed, cells=len(REFERRED))
    inflation = float(size_inflation(correct, group))

    def interval(value: float, draws: Floats, groups: float) -> Estimate:
        return estimate(value, draws, groups=groups, bounds=SHARE, inflation=inflation)

    groups = effective_groups(group)
    return Referral(
        referred=REFERRED,
        accuracy=tuple(
            interval(float(value), draws, max(1.0, groups * (1 - share)))
            for share, value, draws in zip(REFERRED, values["accuracy"], resampled["accuracy"].T, strict=True)
        ),
        area=interval(float(values["area"]), resampled["area"], groups),
    )
