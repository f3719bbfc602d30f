"""Sensitivity at fixed specificity and the reverse, against the ROC curve of scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from medmllm_plugins.metrics.operating_points import TARGETS, FixedTargets, RankedRows, operating_points


def reference(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[list[float], list[float]]:
    """Read both from every point of the ROC curve."""
    x, y, _ = roc_curve(positive, score, sample_weight=weight, drop_intermediate=False)
    near = 1e-9
    sensitivity = [max(y[1 - x >= target - near]) for target in TARGETS]
    specificity = [max((1 - x)[y >= target - near]) for target in TARGETS]
    return sensitivity, specificity


@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
def test_points_are_those_of_scikit_learns_curve(seed: int, n: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    positive = np.concatenate([[True, False], generator.random(n - 2) < 0.4])
    score = generator.normal(size=n) + 1.5 * positive
    score = np.round(score) if ties else score
    weights = np.concatenate([np.ones((n, 1)), generator.integers(0, 4, size=(n, 3))], axis=1).astype(np.int64)
    weights[:2, 1:] += 1  # a resample with both classes
    reached = FixedTargets(RankedRows(score, positive, np.arange(n)))(weights)
    for column in range(weights.shape[1]):
        sensitivity, specificity = reference(score, positive, weights[:, column])
        assert reached["sensitivity"][column] == pytest.approx(sensitivity)
        assert reached["specificity"][column] == pytest.approx(specificity)


def test_a_resample_of_one_class_has_no_points() -> None:
    ranked = RankedRows(np.array([0.1, 0.9]), np.array([False, True]), np.arange(2))
    reached = FixedTargets(ranked)(np.array([[0, 1], [2, 1]]))
    assert np.isnan(reached["sensitivity"][0]).all() and (reached["sensitivity"][1] == 1).all()


def test_the_threshold_is_chosen_within_each_resample() -> None:
    """One threshold for all resamples would leave their specificity free, and the interval too short."""
    generator = np.random.default_rng(3)
    positive = np.arange(300) % 3 == 0
    score = generator.normal(size=300) + 1.2 * positive
    group = np.arange(300)
    result = operating_points([RankedRows(score, positive, group)], group)
    threshold = np.quantile(score[~positive], TARGETS[0])
    fixed = math.sqrt((p := (score[positive] > threshold).mean()) * (1 - p) / positive.sum())
    (estimate, *_) = result.sensitivity
    assert estimate.value == pytest.approx(p, abs=0.02)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high - estimate.low > 1.15 * 2 * 1.96 * fixed


def test_documents_of_one_group_count_as_one() -> None:
    generator = np.random.default_rng(5)
    positive = np.arange(120) % 2 == 0
    score = generator.normal(size=120) + positive
    single = operating_points([RankedRows(score, positive, np.arange(120))], np.arange(120))
    copies = [np.repeat(values, 4) for values in (score, positive, np.arange(120))]
    fourfold = operating_points([RankedRows(copies[0], copies[1], np.arange(480))], copies[2])
    for one_each, several in zip(single.sensitivity, fourfold.sensitivity, strict=True):
        assert several.value == pytest.approx(one_each.value)
        assert several.high - several.low == pytest.approx(one_each.high - one_each.low, rel=0.05)


def test_values_are_means_over_variants() -> None:
    generator = np.random.default_rng(7)
    positive = np.arange(60) % 2 == 0
    parts = [RankedRows(generator.normal(size=60) + turn * positive, positive, np.arange(60)) for turn in (1, 3)]
    both = operating_points(parts, np.arange(60), resamples=20)
    each = [operating_points([part], np.arange(60), resamples=20) for part in parts]
    for index in range(len(TARGETS)):
        mean = np.mean([points.specificity[index].value for points in each])
        assert both.specificity[index].value == pytest.approx(mean)
