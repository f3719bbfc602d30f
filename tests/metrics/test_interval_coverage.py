"""Coverage of the intervals of an accuracy, in simulations with known accuracy and correlation within groups."""

from __future__ import annotations

import numpy as np
import pytest

from medmllm_plugins.metrics.intervals import SHARE, estimate

RESAMPLES = 300


def coverage(groups: int, accuracy: float, icc: float, *, unequal: bool, trials: int, bounds: object = SHARE) -> float:
    """Return how often the interval contains the accuracy, with 3 documents a group or 1 to 9."""
    generator = np.random.default_rng([groups, round(1000 * accuracy), round(10 * icc), unequal])
    covered = 0
    for _ in range(trials):
        sizes = generator.integers(1, 10, groups) if unequal else np.full(groups, 3)
        spread = (1 - icc) / icc if icc else 0.0
        rates = generator.beta(accuracy * spread, (1 - accuracy) * spread, groups) if icc else np.full(groups, accuracy)
        correct = generator.binomial(sizes, rates)
        drawn = generator.integers(groups, size=(RESAMPLES, groups))
        resampled = correct[drawn].sum(1) / sizes[drawn].sum(1)
        value = float(correct.sum() / sizes.sum())
        interval = estimate(value, resampled, groups=groups, bounds=None if bounds is None else SHARE)
        covered += interval.low <= accuracy <= interval.high
    return covered / trials


@pytest.mark.parametrize(("groups", "accuracy", "icc"), [(20, 0.95, 0.8), (40, 0.98, 0.3), (100, 0.8, 0.0)])
def test_intervals_contain_the_accuracy(groups: int, accuracy: float, icc: float) -> None:
    assert 0.91 <= coverage(groups, accuracy, icc, unequal=False, trials=400) <= 0.985


def test_percentile_intervals_do_not() -> None:
    assert coverage(20, 0.95, 0.8, unequal=False, trials=400, bounds=None) < 0.8


@pytest.mark.exhaustive
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("icc", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.95, 0.98])
@pytest.mark.parametrize("groups", [20, 40, 100, 200])
def test_coverage_of_the_table_in_the_docs(groups: int, accuracy: float, icc: float, unequal: bool) -> None:
    """docs/diagnosis.md has the figures; groups of very different sizes are the hardest case."""
    assert coverage(groups, accuracy, icc, unequal=unequal, trials=1000) >= (0.87 if unequal else 0.915)
