"""Coverage of intervals and error rates of tests, in simulations with known truth.

The tables of docs/statistics.md come from test_calibration_table.py.

Shares of 1,000 simulations have a standard error of 0.7 points at 95%. Where few documents differ, few results are
possible, and coverage above 97% cannot be avoided.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.interval_simulations import (
    accuracy_coverage,
    auroc_coverage,
    difference_coverage,
    differences,
    health_coverage,
    trials_of,
)

RISING = tuple(np.linspace(0.35, 0.85, 12))


@pytest.mark.parametrize(
    ("groups", "accuracy", "icc", "sizes"),
    [(20, 0.95, 0.8, "3"), (40, 0.98, 0.3, "3"), (100, 0.95, 0.8, "1 to 9"), (200, 0.98, 0.8, "1 to 9")],
)
def test_intervals_contain_the_accuracy(groups: int, accuracy: float, icc: float, sizes: str) -> None:
    assert 0.91 <= accuracy_coverage(groups, accuracy, icc, sizes, trials=400) <= 0.985


def test_percentile_intervals_do_not() -> None:
    covered = 0
    for _, _, resampled in trials_of([5], 400, 20, "3", [0.95], 0.8):
        low, high = np.quantile(resampled[0], [0.025, 0.975])
        covered += low <= 0.95 <= high
    assert covered / 400 < 0.85


@pytest.mark.parametrize(
    ("groups", "accuracies", "icc", "rho", "sizes"),
    [(20, (0.98, 0.95), 0.8, 0.9, "3"), (40, (0.9, 0.8), 0.8, 0.9, "1 to 9"), (100, (0.8, 0.5), 0.0, 0.5, "1")],
)
def test_intervals_contain_the_difference(
    groups: int, accuracies: tuple[float, float], icc: float, rho: float, sizes: str
) -> None:
    assert difference_coverage(groups, accuracies, icc, rho, sizes, trials=400)[0] >= 0.91


def test_classifiers_that_always_agree_differ_by_zero() -> None:
    assert difference_coverage(20, (0.8, 0.8), 0.3, 1.0, "1 to 9", trials=50) == (1, 0)
    # Two classifiers that differ in 5% of the documents agree on all of them in some samples.
    assert difference_coverage(20, (0.55, 0.5), 0.8, 1.0, "3", trials=400)[0] >= 0.91


@pytest.mark.parametrize(("groups", "auroc", "icc", "sizes"), [(40, 0.8, 0.8, "3"), (20, 0.95, 0.8, "1 to 9")])
def test_intervals_contain_the_auroc(groups: int, auroc: float, icc: float, sizes: str) -> None:
    assert 0.91 <= auroc_coverage(groups, auroc, icc, sizes, trials=300) <= 0.985


def test_intervals_contain_the_feature_health_score() -> None:
    assert health_coverage(100, RISING, 0.0, 0.9, "3", trials=300) >= 0.91
    assert health_coverage(20, np.linspace(0.9, 0.97, 24).tolist(), 0.8, 0.9, "1 to 9", trials=300) >= 0.91


def test_a_loss_as_large_as_the_smallest_of_interest_is_seldom_ruled_out() -> None:
    ruled_out = [result.high < 0.1 for result, _ in differences(40, (0.9, 0.8), 0.8, 0.5, "3", trials=400)]
    assert np.mean(ruled_out) < 0.05
