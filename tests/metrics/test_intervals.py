"""Bootstrap intervals: analytic cases, what clusters do to them, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from medmllm_plugins.metrics import intervals
from medmllm_plugins.metrics.intervals import (
    Estimate,
    bootstrap,
    estimate,
    resampled_weights,
    size_inflation,
)
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import summarise


def scored(right, groups):
    """Outcomes of two classes in turn, right or wrong as told."""
    names = ("no", "yes")
    return [
        Outcome(f"{i:05}", str(group), names[i % 2], names[i % 2 if hit else 1 - i % 2], "parsed")
        for i, (hit, group) in enumerate(zip(right, groups, strict=True))
    ]


def width(estimate):
    return estimate.high - estimate.low


def test_weights_are_whole_draws_of_as_many_groups():
    parts = list(resampled_weights(7, 25, 4, at_once=10))
    assert [part.shape for part in parts] == [(7, 10), (7, 10), (7, 5)]
    weights = np.concatenate(parts, axis=1)
    assert (weights.sum(0) == 7).all()
    assert (weights == weights.round()).all()
    assert len(np.unique(weights, axis=1).T) > 20


@pytest.mark.parametrize("groups", [2, 7, 70_000])
def test_the_draws_do_not_depend_on_how_many_are_made_at_once(groups):
    whole = next(resampled_weights(groups, 5, 4, at_once=5))
    parts = list(resampled_weights(groups, 5, 4, at_once=2))
    assert (np.concatenate(parts, axis=1) == whole).all()


def test_threads_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    group = generator.integers(30, size=100)
    values = generator.normal(size=100)

    def evaluate(weights):
        return {"mean": values @ weights / weights.sum(0), "by_class": weights.T[:, :3] * 1.0}

    whole = bootstrap(evaluate, group, resamples=201, seed=3)
    monkeypatch.setattr(intervals, "_THREADED", 1)
    monkeypatch.setattr(intervals, "processors", lambda: 4)
    monkeypatch.setattr(intervals, "_CELLS", 100 * 7)
    _, shared = bootstrap(evaluate, group, resamples=201, seed=3)
    for name, resampled in shared.items():
        np.testing.assert_allclose(resampled, whole[1][name], rtol=1e-12)


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(intervals, "_THREADED", 1)
    monkeypatch.setattr(intervals, "processors", lambda: 2)

    def evaluate(weights):
        if weights.shape[1] > 1:
            raise ZeroDivisionError
        return {"nothing": np.zeros(1)}

    with pytest.raises(ZeroDivisionError):
        bootstrap(evaluate, np.arange(9), resamples=20, seed=0)


def test_weights_follow_the_multinomial_distribution():
    weights = next(resampled_weights(20, 20_000, 0, at_once=20_000))
    assert weights.mean(1) == pytest.approx(np.ones(20), abs=0.04)
    assert weights.var() == pytest.approx(1 - 1 / 20, rel=0.02)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 20) ** 20, abs=0.005)


def test_undefined_resamples_are_left_out():
    values = np.array([math.nan, *np.linspace(0, 1, 101)])
    margin = stats.t.ppf(0.975, 8) * values[1:].std() * math.sqrt(9 / 8)
    assert estimate(0.5, values, groups=9) == Estimate(0.5, pytest.approx(0.5 - margin), pytest.approx(0.5 + margin))


def test_intervals_cover_the_bias_of_sums_of_absolute_changes():
    """The bias of sums of absolute changes is one to 2.4 times their change by resampling; the value stays inside."""
    resampled = 0.5 + 0.1 + 1e-3 * np.random.default_rng(0).normal(size=5000)
    interval = estimate(0.5, resampled, groups=1000)
    assert (interval.low, interval.high) == pytest.approx((0.5 - 0.1 / (math.sqrt(2) - 1), 0.5), abs=0.003)


def test_variances_are_enlarged_only_where_sizes_differ():
    generator = np.random.default_rng(0)
    rows = (generator.random((3, 120)) < 0.8).astype(np.float64)
    assert size_inflation(rows, np.repeat(np.arange(40), 3)) == pytest.approx(np.ones(3))
    assert size_inflation(np.ones((1, 6)), np.array([0, 0, 0, 0, 1, 2])).tolist() == [1.0]
    # Two of 20 groups are wrong, both of size 1, so that the variance over resamples is far too low.
    group = np.repeat(np.arange(20), [1] * 10 + [5] * 10)
    wrong = np.isin(group, [0, 1]).astype(np.float64)
    spread, n = wrong.mean() * (1 - wrong.mean()), 60
    observed = (np.bincount(group, wrong - wrong.mean()) ** 2).sum() / n**2
    assert size_inflation(wrong, group) == pytest.approx(spread * (260 / n) / n / observed, rel=0.05)


@pytest.mark.parametrize(
    ("value", "values", "groups"), [(0.5, [0.5, 0.5], 1), (math.nan, [0.1, 0.2], 5), (0.5, [math.nan, math.nan], 5)]
)
def test_no_interval_where_nothing_can_be_resampled(value, values, groups):
    result = estimate(value, np.array(values), groups=groups)
    assert result.to_dict() == {"value": None if math.isnan(value) else value, "low": None, "high": None}


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_singleton_groups_give_the_binomial_standard_error(p):
    n = 1000
    right = np.arange(n) < p * n
    result = summarise(scored(right, range(n)), ["no", "yes"], None, resamples=4000).metrics["accuracy"]
    assert result.value == pytest.approx(p)
    assert width(result) / (2 * 1.959964) == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.1)


def test_copies_within_a_group_add_no_certainty():
    single = np.random.default_rng(0).random(150) < 0.7
    copies = np.repeat(single, 4)
    labels = ["no", "yes"]
    by_group = summarise(scored(copies, np.repeat(np.arange(150), 4)), labels, None, resamples=4000)
    naive = summarise(scored(copies, np.arange(600)), labels, None, resamples=4000)
    alone = summarise(scored(single, np.arange(150)), labels, None, resamples=4000)
    # Four copies of each document quarter the naive variance and leave the true one as it was.
    assert width(by_group.metrics["accuracy"]) / width(naive.metrics["accuracy"]) == pytest.approx(2, rel=0.1)
    assert width(by_group.metrics["accuracy"]) == pytest.approx(width(alone.metrics["accuracy"]), rel=0.1)


def test_intervals_cover_the_truth_under_clustering_where_naive_ones_do_not():
    generator = np.random.default_rng(5)
    repeats, groups, size = 200, 60, 5
    covered = {"by_group": 0, "naive": 0}
    for _ in range(repeats):
        # Each group has its own success probability, Beta(1.4, 0.6): mean 0.7, strongly clustered.
        right = (generator.random((groups, size)) < generator.beta(1.4, 0.6, size=(groups, 1))).ravel()
        for name, members in (("by_group", np.repeat(np.arange(groups), size)), ("naive", np.arange(groups * size))):
            result = summarise(scored(right, members), ["no", "yes"], None, resamples=200).metrics["accuracy"]
            covered[name] += result.low <= 0.7 <= result.high
    # Under 95 % coverage the count is binomial with standard deviation 3.1; the intervals run a bit short.
    assert covered["by_group"] / repeats >= 0.90
    assert covered["naive"] / repeats <= 0.85
