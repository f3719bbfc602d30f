"""Intervals of paired differences: a published example, McNemar's test, and cases at the ends of the range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medmllm_plugins.metrics.intervals import resampled_weights
from medmllm_plugins.metrics.paired_difference import paired_difference, score_interval

Z = float(stats.norm.ppf(0.975))


def drawn_means(rows: np.ndarray, group: np.ndarray, resamples: int = 2000) -> np.ndarray:
    weights = next(resampled_weights(int(group.max()) + 1, resamples, 0, at_once=resamples))[group]
    return rows @ weights / weights.sum(0)


def test_the_score_interval_is_that_of_a_published_example() -> None:
    """Of 21 children 1 had hyper-responsive airways only before a transplantation, 7 only after it.

    Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
    Statistics in Medicine 33, 2014: -0.517 to -0.026.
    """
    assert score_interval(1 / 21, 7 / 21, 21, Z) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("first", "second"), [(1, 7), (3, 3), (10, 2), (4, 0), (0, 5), (40, 25)])
def test_the_interval_excludes_zero_where_mcnemars_test_rejects(first: int, second: int) -> None:
    p = float(stats.chi2.sf((first - second) ** 2 / (first + second), 1))
    n = 50 + first + second
    low, high = score_interval(first / n, second / n, n, Z)
    assert (low > 0 or high < 0) == (p < 0.05)
    assert score_interval(second / n, first / n, n, Z) == pytest.approx((-high, -low))


def test_pairs_that_never_differ_have_the_interval_of_the_score_test() -> None:
    end = Z**2 / (40 + Z**2)
    assert score_interval(0.0, 0.0, 40, Z) == pytest.approx((-end, end), abs=1e-6)
    low, high = score_interval(1.0, 0.0, 40, Z)
    assert high == 1.0 and low == pytest.approx(1 - 2 * Z**2 / (40 + Z**2), abs=0.1)


def test_documents_of_their_own_groups_have_tangos_interval() -> None:
    rows, group = np.repeat([1.0, 0.0, -1.0], [12, 180, 8]), np.arange(200)
    result = paired_difference(rows, drawn_means(rows, group, 20_000), group)
    t = float(stats.t.ppf(0.975, 199))
    expected = score_interval(12 / 200, 8 / 200, 199, t)  # the variance of groups has G - 1
    assert result.value == pytest.approx(0.02)
    assert (result.low, result.high) == pytest.approx(expected, abs=0.001)


def test_equal_documents_of_a_group_add_nothing() -> None:
    rows, group = np.repeat([1.0, 0.0, -1.0], [12, 80, 8]), np.arange(100)
    single = paired_difference(rows, drawn_means(rows, group), group)
    fivefold = paired_difference(np.repeat(rows, 5), drawn_means(rows, group), np.repeat(group, 5))
    assert (fivefold.low, fivefold.high) == pytest.approx((single.low, single.high), abs=1e-9)


def test_a_difference_that_varies_more_than_the_documents_has_a_wider_interval() -> None:
    rows, group = np.repeat([1.0, 0.0, -1.0], [12, 80, 8]), np.arange(100)
    drawn = drawn_means(rows, group)
    refitted = drawn + np.random.default_rng(0).normal(0, 0.1, len(drawn))
    plain, wide = paired_difference(rows, drawn, group), paired_difference(rows, refitted, group, value=0.06)
    assert wide.value == 0.06 and wide.high - wide.low > 1.8 * (plain.high - plain.low)


def test_a_difference_of_one_group_has_no_interval() -> None:
    one = paired_difference(np.array([1.0, 0.0]), np.full(10, 0.5), np.zeros(2, dtype=np.intp))
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(one.high)
