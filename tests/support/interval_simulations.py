"""Simulations with known truth: how often intervals contain it, and how often tests are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from medmllm_plugins.metrics.intervals import (
    SHARE,
    Estimate,
    effective_groups,
    estimate,
    estimate_metric,
    resampled_weights,
    size_inflation,
)
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.metrics.ranking import WeightedRanking, auroc_variances
from medmllm_plugins.probes.curves import permutation_p_values
from medmllm_plugins.probes.feature_health import health_estimate, health_score
from medmllm_plugins.probes.labelled_features import LabelledFeatures

Array = npt.NDArray[np.float64]
RESAMPLES = 400


def group_sizes(generator: np.random.Generator, trials: int, groups: int, sizes: str) -> npt.NDArray[np.int64]:
    """Return documents per group, (trials, groups): all ``"1"`` or ``"3"``, or drawn from ``"1 to 9"`` or so."""
    low, _, high = sizes.partition(" to ")
    return (
        generator.integers(int(low), int(high) + 1, (trials, groups)) if high else np.full((trials, groups), int(sizes))
    )


def correct_answers(
    generator: np.random.Generator,
    sizes: npt.NDArray[np.int64],
    accuracies: Sequence[float],
    icc: float,
    rho: float,
) -> npt.NDArray[np.bool_]:
    """Return whether classifiers are correct, (trials, groups, largest size, classifiers), False beyond a group's size.

    ``sizes`` are documents per group, (trials, groups). Correct answers of a classifier correlate by ``icc`` within a
    group, and those of classifiers of equal accuracy by ``rho`` within a document.
    """

    def levels(*shape: int) -> npt.NDArray[np.float32]:
        own = generator.random((*shape, len(accuracies)), dtype=np.float32)
        shared = generator.random((*shape, 1), dtype=np.float32)
        copied = generator.random(own.shape, dtype=np.float32) < math.sqrt(rho)
        return np.where(copied, shared, own)

    shape = (*sizes.shape, int(sizes.max()))
    copies_group = generator.random((*shape, 1), dtype=np.float32) < math.sqrt(icc)
    correct = np.where(copies_group, levels(*sizes.shape, 1), levels(*shape)) < np.array(accuracies, dtype=np.float32)
    return correct & (np.arange(shape[-1]) < sizes[..., None])[..., None]


def resampled_shares(rows: Array, group: npt.NDArray[np.intp], weights: Array) -> Array:
    """Return means of rows (R, n) on resamples of groups, (R, B), for weights (groups, B)."""
    sums = np.array([np.bincount(group, row, len(weights)) for row in rows])
    return sums @ weights / (np.bincount(group, minlength=len(weights)) @ weights)


def trials_of(
    seed: Sequence[int], trials: int, groups: int, sizes: str, accuracies: Sequence[float], icc: float, rho: float = 0.0
) -> Iterator[tuple[Array, npt.NDArray[np.intp], Array]]:
    """Yield for each trial correct answers (classifiers, n), groups (n,) and resampled accuracies (classifiers, B)."""
    generator = np.random.default_rng([*seed, groups, round(10 * icc), round(10 * rho), len(sizes)])
    documents = group_sizes(generator, trials, groups, sizes)
    correct = correct_answers(generator, documents, accuracies, icc, rho)
    weights = next(resampled_weights(groups, RESAMPLES, trials, at_once=RESAMPLES)).astype(np.float64)
    for counts, answers in zip(documents, correct, strict=True):
        group = np.repeat(np.arange(groups), counts)
        rows = answers[np.arange(answers.shape[1]) < counts[:, None]].T.astype(np.float64)
        yield rows, group, resampled_shares(rows, group, weights)


def shares(rows: Array, group: npt.NDArray[np.intp], resampled: Array) -> list[Estimate]:
    """Return the mean of each row with its interval."""
    groups, inflations = effective_groups(group), size_inflation(rows, group)
    return [
        estimate(float(row.mean()), column, groups=groups, bounds=SHARE, inflation=float(inflation))
        for row, column, inflation in zip(rows, resampled, inflations, strict=True)
    ]


def contains(interval: Estimate, truth: float) -> bool:
    """Return whether a value is within an interval, apart from rounding."""
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def accuracy_coverage(groups: int, accuracy: float, icc: float, sizes: str, trials: int) -> float:
    """Return how often the interval of an accuracy contains it."""
    seed = [11, round(1000 * accuracy)]
    return float(
        np.mean(
            [contains(shares(*trial)[0], accuracy) for trial in trials_of(seed, trials, groups, sizes, [accuracy], icc)]
        )
    )


def differences(
    groups: int, accuracies: tuple[float, float], icc: float, rho: float, sizes: str, trials: int
) -> Iterator[tuple[Estimate, int]]:
    """Yield the estimated differences of two accuracies, and the number of groups in which the two differ."""
    seed = [12, *(round(1000 * accuracy) for accuracy in accuracies)]
    for rows, group, resampled in trials_of(seed, trials, groups, sizes, accuracies, icc, rho):
        signed = rows[0] - rows[1]
        yield paired_difference(signed, resampled[0] - resampled[1], group), len(np.unique(group[signed != 0]))


def difference_coverage(
    groups: int, accuracies: tuple[float, float], icc: float, rho: float, sizes: str, trials: int
) -> tuple[float, float]:
    """Return how often the interval of a difference contains it, and the mean number of groups that differ."""
    truth = accuracies[0] - accuracies[1]
    results = list(differences(groups, accuracies, icc, rho, sizes, trials))
    return float(np.mean([contains(result, truth) for result, _ in results])), float(np.mean([n for _, n in results]))


def auroc_coverage(
    groups: int, auroc: float, icc: float, sizes: str, trials: int, *, positive: float = 0.5, clustered: bool = False
) -> float:
    """Return how often the interval of an AUROC contains it.

    Scores are normal, with correlation ``icc`` within groups; a share ``positive`` of documents, or of groups where
    ``clustered``, is positive.
    """
    generator = np.random.default_rng([13, groups, round(1000 * auroc), round(10 * icc), len(sizes), clustered])
    weights = next(resampled_weights(groups, RESAMPLES, trials, at_once=RESAMPLES))
    shift, covered, defined = float(ndtri(auroc)) * math.sqrt(2), 0, 0
    for counts in group_sizes(generator, trials, groups, sizes):
        group = np.repeat(np.arange(groups), counts)
        n = len(group)
        is_positive = generator.random(groups)[group] < positive if clustered else generator.random(n) < positive
        noise = math.sqrt(icc) * generator.normal(size=groups)[group] + math.sqrt(1 - icc) * generator.normal(size=n)
        if is_positive.all() or not is_positive.any():
            continue
        scores = shift * is_positive + noise
        rank = WeightedRanking(scores, is_positive)
        value = float(rank(np.ones((n, 1), dtype=np.int64))[0][0])
        resampled = rank(np.asfortranarray(weights[group]))[0]
        observed, expected = auroc_variances(scores, is_positive, group)
        inflation = max(1.0, expected / observed) if observed > 0 else 1.0
        interval = estimate_metric("auroc", value, resampled, groups=effective_groups(group), inflation=inflation)
        covered, defined = covered + contains(interval, auroc), defined + 1
    return covered / defined


def health_coverage(groups: int, curve: Sequence[float], icc: float, rho: float, sizes: str, trials: int) -> float:
    """Return how often the interval of a Feature Health Score contains that of the true curve."""
    truth = float(health_score(np.array(curve)))
    seed = [14, len(curve), round(1000 * curve[0])]
    covered = 0
    for rows, group, resampled in trials_of(seed, trials, groups, sizes, curve, icc, rho):
        interval = health_estimate(rows, resampled.T, group)
        covered += contains(interval, truth)
    return covered / trials


def permutation_rejections(
    groups: int, sizes: str, icc: tuple[float, float], frequencies: Sequence[float], trials: int
) -> float:
    """Return how often permuted labels reject at the 5% level where predictions and labels are independent.

    ``icc`` are the correlations within groups of the labels and of the predictions; ``frequencies`` those of the
    classes in both.
    """
    generator = np.random.default_rng([5, groups, len(sizes), *(round(10 * value) for value in icc), len(frequencies)])
    rejected = 0
    for trial, counts in enumerate(group_sizes(generator, trials, groups, sizes)):
        group = np.repeat(np.arange(groups), counts)
        labels, predictions = (
            np.where(
                generator.random(len(group)) < math.sqrt(correlation),
                generator.choice(len(frequencies), groups, p=frequencies)[group],
                generator.choice(len(frequencies), len(group), p=frequencies),
            )
            for correlation in icc
        )
        documents = LabelledFeatures(
            tuple(map(str, range(len(frequencies)))), labels, group, {"test": np.arange(len(group))}
        )
        rejected += bool(permutation_p_values(predictions[None], documents, seed=trial, permutations=199)[0] <= 0.05)
    return rejected / trials
