"""Bounds that hold for several losses at once: error rates in simulations with known losses."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from support.interval_simulations import correct_answers

from medmllm_plugins.metrics.intervals import effective_groups, resampled_weights, simultaneous_bounds

LOSSES = 4


def stages(
    generator: np.random.Generator, sizes: npt.NDArray[np.int64], accuracies: list[float], icc: float, rho: float
) -> npt.NDArray[np.int64]:
    """Return how many documents of each group each stage classifies correctly, (trials, groups, stages).

    ``sizes`` are documents per group, (trials, groups). Correct answers of a stage correlate by ``icc`` within a group,
    and those of stages of equal accuracy by ``rho`` within a document.
    """
    return correct_answers(generator, sizes, accuracies, icc, rho).sum(2)


def false_losses(groups: int, icc: float, rho: float, accuracy: float, *, trials: int, unequal: bool = False) -> float:
    """Return how often some of four losses that are all zero has a lower bound above zero."""
    generator = np.random.default_rng([groups, round(10 * icc), round(10 * rho), round(100 * accuracy), unequal])
    sizes = generator.integers(1, 10, (trials, groups)) if unequal else np.full((trials, groups), 3)
    correct = stages(generator, sizes, [accuracy] * (LOSSES + 1), icc, rho).astype(np.float64)
    weights = next(resampled_weights(groups, 1000, 1, at_once=1000)).astype(np.float64)
    wrong = 0
    for counts, documents in zip(correct, sizes, strict=True):
        resampled = (counts.T @ weights / (documents @ weights)).T
        accuracies = counts.sum(0) / documents.sum()
        bounds = simultaneous_bounds(
            -np.diff(accuracies),
            -np.diff(resampled, axis=1),
            groups=effective_groups(np.repeat(np.arange(groups), documents)),
        )
        wrong += bool((bounds.low > 1e-9).any())
    return wrong / trials


@pytest.mark.parametrize(("groups", "icc", "accuracy"), [(20, 0.8, 0.6), (100, 0.0, 0.95)])
def test_families_without_loss_are_seldom_charged(groups: int, icc: float, accuracy: float) -> None:
    # 600 trials at 5% have a standard error of 0.9 points.
    assert false_losses(groups, icc, 0.5, accuracy, trials=600) < 0.075


@pytest.mark.exhaustive
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("accuracy", [0.6, 0.95])
@pytest.mark.parametrize("icc", [0.0, 0.8])
@pytest.mark.parametrize("groups", [20, 40, 100, 200])
def test_family_errors_of_the_table_in_the_docs(
    groups: int, icc: float, accuracy: float, rho: float, unequal: bool
) -> None:
    assert false_losses(groups, icc, rho, accuracy, trials=1000, unequal=unequal) < 0.075


def test_one_figure_has_the_bound_of_students_t() -> None:
    resampled = np.random.default_rng(0).normal(size=(200_000, 1))
    bounds = simultaneous_bounds(np.array([0.3]), resampled, groups=12)
    assert bounds.critical == pytest.approx(stats.t.ppf(0.95, 11), abs=0.02)
    assert bounds.low[0] == pytest.approx(0.3 - bounds.critical * math.sqrt(12 / 11), abs=0.01)
    assert bounds.high[0] == pytest.approx(0.6 - bounds.low[0])


def test_independent_figures_have_the_bounds_of_sidak() -> None:
    resampled = np.random.default_rng(0).normal(size=(200_000, 4))
    critical = simultaneous_bounds(np.zeros(4), resampled, groups=1_000_000).critical
    assert critical == pytest.approx(stats.norm.ppf(0.95**0.25), abs=0.02)


def test_figures_without_variance_are_their_own_bounds_and_widen_no_others() -> None:
    resampled = np.random.default_rng(0).normal(size=(2000, 2))
    alone = simultaneous_bounds(np.array([0.1, 0.2]), resampled, groups=30)
    constant = np.full((2000, 1), 0.4)
    with_constant = simultaneous_bounds(
        np.array([0.1, 0.4, 0.2]), np.insert(resampled, [1], constant, axis=1), groups=30
    )
    assert with_constant.critical == alone.critical
    assert with_constant.low.tolist() == [alone.low[0], 0.4, alone.low[1]]
    nothing = simultaneous_bounds(np.array([0.0, 0.4]), np.tile([0.0, 0.4], (50, 1)), groups=30)
    assert nothing.low.tolist() == nothing.high.tolist() == [0.0, 0.4] and nothing.critical == 0


def test_one_group_has_no_bounds() -> None:
    bounds = simultaneous_bounds(np.zeros(2), np.zeros((5, 2)), groups=1)
    assert np.isnan([*bounds.low, *bounds.high, bounds.critical]).all()


def test_groups_of_unequal_size_count_as_fewer() -> None:
    assert effective_groups(np.repeat(np.arange(5), 3)) == pytest.approx(5)
    assert effective_groups(np.repeat(np.arange(3), [1, 1, 4])) == pytest.approx(36 / 18)
