"""The Feature Health Score: values worked out by hand, its edges, and what holds for every curve."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.intervals import SHARE, estimate
from medmllm_plugins.probes.feature_health import Health, health, health_estimate, health_score

# Away from 0, where the growth is defined for every curve.
CURVES = arrays(np.float64, st.integers(1, 12), elements=st.floats(0.01, 1.0))


def score(*accuracies, **options):
    return float(health_score(np.array(accuracies), **options))


def test_a_rising_curve():
    # start = min = 0.5, end = 0.8: growth = ln(0.8 / sqrt(0.5 * 0.5)) = ln 1.6 = 0.4700036
    # changes 0.1 + 0.2 = 0.3: volatility = exp(-0.2 * 0.3 / 0.8) = exp(-0.075) = 0.9277435
    # score = 0.8 * 1.4700036 * 0.9277435 = 1.0910292
    assert score(0.5, 0.6, 0.8) == pytest.approx(1.0910292, abs=1e-6)
    assert score(0.5, 0.6, 0.8) == pytest.approx(0.8 * (1 + math.log(1.6)) * math.exp(-0.075))


def test_a_curve_that_drops_and_recovers():
    # start 0.9, min 0.4, end 0.6: growth = ln(0.6 / sqrt(0.9 * 0.4)) = ln(0.6 / 0.6) = 0
    # changes 0.5 + 0.2 = 0.7: volatility = exp(-0.2 * 0.7 / 0.6) = exp(-0.2333333) = 0.7918895
    # score = 0.6 * 1 * 0.7918895 = 0.4751337
    assert score(0.9, 0.4, 0.6) == pytest.approx(0.4751337, abs=1e-6)


def test_a_declining_curve_can_score_below_zero():
    # start 1, min = end = 0.04: growth = ln(0.04 / sqrt(1 * 0.04)) = ln 0.2 = -1.6094379
    # changes 0.96: volatility = exp(-0.2 * 0.96 / 0.04) = exp(-4.8) = 0.0082297
    # score = 0.04 * -0.6094379 * 0.0082297 = -0.00020062
    assert score(1.0, 0.04) == pytest.approx(-0.00020062, abs=1e-8)


def test_the_decay_is_the_papers_by_default():
    # the rising curve with lambda = 1: exp(-0.3 / 0.8) = exp(-0.375)
    assert score(0.5, 0.6, 0.8, decay=1.0) == pytest.approx(0.8 * (1 + math.log(1.6)) * math.exp(-0.375))
    assert score(0.5, 0.6, 0.8, decay=0.0) == pytest.approx(0.8 * (1 + math.log(1.6)))
    assert score(0.5, 0.6, 0.8, decay=0.2) == score(0.5, 0.6, 0.8)


@pytest.mark.parametrize("accuracy", [0.0, 1e-200, 0.3, 1.0])
@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_flat_curve_scores_its_accuracy(accuracy, layers):
    assert score(*[accuracy] * layers) == accuracy


def test_nothing_left_at_the_end_scores_zero():
    assert score(0.5, 0.3, 0.0) == 0.0
    assert score(0.0, 0.3, 0.0) == 0.0
    assert score(0.5, 0.3, 0.0, decay=0.0) == 0.0
    # the limit
    assert score(0.5, 0.3, 1e-9) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("curve", [(0.0, 0.5), (0.5, 0.0, 0.5), (0.0, 0.0, 0.1)])
def test_growth_from_nothing_is_not_defined(curve):
    assert math.isnan(score(*curve))


@pytest.mark.parametrize(
    "curve", [(math.nan, 0.5), (0.5, math.nan, 0.5), (0.5, math.nan), (0.0, math.nan, 0.1), (math.nan,)]
)
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_an_undefined_accuracy_leaves_the_score_undefined(curve, decay):
    assert math.isnan(score(*curve, decay=decay))


def test_an_undefined_accuracy_before_a_zero_end_leaves_the_score_undefined():
    assert math.isnan(score(0.5, math.nan, 0.0))


def test_curves_at_once_are_curves_one_by_one():
    curves = np.random.default_rng(0).random((3, 5, 8))
    curves[0, 0], curves[1, 1, 2], curves[2, 2, -1] = 0.4, math.nan, 0.0
    scored = health_score(curves)
    assert scored.shape == (3, 5)
    assert scored.dtype == np.float64
    single = [[float(health_score(curve)) for curve in row] for row in curves]
    np.testing.assert_array_equal(scored, single)


def test_parts_make_the_score():
    scored = health(np.array([0.5, 0.25, 0.6, 0.5]))
    # growth = ln(0.5 / sqrt(0.5 * 0.25)) = ln sqrt 2; changes 0.25 + 0.35 + 0.1 = 0.7
    assert scored.growth == pytest.approx(math.log(2) / 2)
    assert scored.volatility == pytest.approx(math.exp(-0.2 * 0.7 / 0.5))
    assert (scored.p_start, scored.p_min, scored.p_end) == (0.5, 0.25, 0.5)
    assert scored.score == pytest.approx(scored.p_end * (1 + scored.growth) * scored.volatility)


def test_parts_as_json():
    assert health(np.array([0.4])).to_dict() == {
        "score": 0.4,
        "growth": 0.0,
        "volatility": 1.0,
        "p_start": 0.4,
        "p_min": 0.4,
        "p_end": 0.4,
    }
    undefined = health(np.array([0.0, 0.5])).to_dict()
    assert (undefined["score"], undefined["growth"]) == (None, None)
    json.dumps(undefined, allow_nan=False)
    lost = health(np.array([0.5, 0.0]))
    assert (lost.score, lost.volatility) == (0.0, 0.0)
    assert math.isnan(lost.growth)


def test_health_is_frozen():
    with pytest.raises(AttributeError):
        health(np.array([0.4])).score = 1.0
    assert Health.__slots__ == ("score", "growth", "volatility", "p_start", "p_min", "p_end")


@pytest.mark.parametrize("curve", [[0.5, 1.01], [-0.1, 0.5], [math.nan, 80.0], [0.5, math.inf]])
def test_accuracies_out_of_range_are_refused(curve):
    with pytest.raises(DataError, match=r"between 0 and 1, got .* not percent"):
        health_score(np.array(curve))


@pytest.mark.parametrize("curve", [np.float64(0.5), np.zeros(0), np.zeros((3, 0))])
def test_curves_without_layers_are_refused(curve):
    with pytest.raises(DataError, match="at least one layer"):
        health_score(curve)


def test_parts_are_of_one_curve():
    with pytest.raises(DataError, match=r"shape \(2, 3\)\. .*health_score"):
        health(np.full((2, 3), 0.5))


@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf])
def test_a_decay_that_rewards_is_refused(decay):
    with pytest.raises(OptionError, match="`decay` to be at least 0"):
        health_score(np.array([0.5]), decay)


@given(CURVES, st.floats(0.1, 1.0))
def test_score_scales_with_the_accuracies(curve, factor):
    # growth and volatility are ratios of accuracies
    assert score(*curve * factor) == pytest.approx(score(*curve) * factor, rel=1e-9, abs=1e-12)


@given(CURVES, st.integers(2, 3))
def test_layers_that_change_nothing_do_not_count(curve, times):
    assert score(*np.repeat(curve, times)) == pytest.approx(score(*curve), rel=1e-9, abs=1e-12)


@given(CURVES, st.floats(0, 5), st.floats(0, 5))
def test_a_larger_decay_brings_the_score_nearer_to_zero(curve, first, second):
    low, high = sorted((first, second))
    assert abs(score(*curve, decay=high)) <= abs(score(*curve, decay=low)) + 1e-12


@given(CURVES, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_above_all_other_layers_a_better_end_scores_better(curve, first, second):
    # There growth is at least 0, and the last step costs less than the end gains: (2 + growth) / (1 + growth) > lambda.
    # Elsewhere it need not hold.
    low, high = sorted(max(curve.max(), end) for end in (first, second))
    assert score(*curve, low) <= score(*curve, high) + 1e-12


@given(CURVES)
def test_score_of_a_curve_that_never_falls(curve):
    rising = np.sort(curve)
    start, end = rising[0], rising[-1]
    expected = end * (1 + math.log(end / start)) * math.exp(-0.2 * (1 - start / end))
    assert score(*rising) == pytest.approx(expected)


def resampled_curve(curve, error, correlation, resamples=20_000):
    """Return the curve with normal deviations, (B, n), of one standard error and correlation for all layers."""
    noise = np.random.default_rng(0).normal(size=(resamples, len(curve) + 1))
    noise -= noise.mean(0)
    return curve + error * (np.sqrt(correlation) * noise[:, :1] + np.sqrt(1 - correlation) * noise[:, 1:])


def interval_of(curve, resampled, groups):
    """Return the interval for documents of which each group has as many correct as any other."""
    correct = np.arange(100_000) // groups < np.round(np.array(curve)[:, None] * 100_000 / groups)
    return health_estimate(correct.astype(float), resampled, np.arange(100_000) % groups)


def test_the_interval_of_a_rising_curve_is_that_of_the_delta_method():
    curve, error, groups = np.linspace(0.3, 0.8, 4), 0.004, 400
    start, end = curve[0], curve[-1]
    # Every change is much larger than its error, so score = end (1 + ln(end / start)) exp(-0.2 (end - start) / end).
    penalty, growth = math.exp(-0.2 * (end - start) / end), 1 + math.log(end / start)
    by_end = penalty * (growth + 1 - 0.2 * growth * start / end)
    by_start = penalty * (-end / start + 0.2 * growth)
    expected = 1.966 * error * math.hypot(by_end, by_start) * math.sqrt(400 / 399)
    result = interval_of(curve, resampled_curve(curve, error, 0.0), groups)
    assert result.value - result.low == pytest.approx(expected, rel=0.05)
    assert result.high - result.value == pytest.approx(expected, rel=0.05)


def test_the_interval_covers_the_changes_that_are_noise_alone():
    """Of a flat curve the changes are noise, so the score of a curve without them is within the interval."""
    flat, error = np.full(40, 0.8), 0.01
    observed = resampled_curve(flat, error, 0.0, 50)[0]
    noise = 39 * error * 2 / math.sqrt(math.pi)  # mean absolute difference of two normal deviations
    result = interval_of(observed, resampled_curve(observed, error, 0.0), 400)
    assert result.value < 0.8 * math.exp(-0.2 * 0.8 * noise / 0.8) + 0.06
    assert result.low < result.value and result.high > observed[-1]


def test_a_curve_that_never_varies_has_an_interval_with_a_width():
    result = interval_of(np.ones(5), np.ones((50, 5)), 40)
    assert result.value == 1 and 0.7 < result.low < 0.92 and 1.05 < result.high < 1.3


def test_the_interval_of_one_layer_is_that_of_its_accuracy():
    resampled = resampled_curve(np.array([0.9]), 0.02, 0.0)
    expected = estimate(0.9, resampled[:, 0], groups=30, bounds=SHARE)
    result = interval_of([0.9], resampled, 30)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("curve", "groups"), [((0.5, 0.6), 1), ((0.0, 0.6), 30), ((0.5, 0.0), 30)])
def test_no_interval_with_one_group_or_an_accuracy_of_zero(curve, groups):
    result = interval_of(curve, np.tile(curve, (9, 1)), groups)
    assert math.isnan(result.low) and math.isnan(result.high)
