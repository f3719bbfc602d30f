"""Reliability in bins of equal counts, and shares of parts of the documents, against counts and Wilson's interval."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from medmllm_plugins.metrics.part_shares import part_shares
from medmllm_plugins.metrics.reliability import MIN_ANSWERS, bin_members, reliability_bins


@given(st.integers(0, 1_000), st.integers(0, 400), st.integers(1, 400))
def test_every_answer_is_in_one_bin_of_at_least_ten(seed: int, n: int, values: int) -> None:
    confidence = np.random.default_rng(seed).integers(values, size=n) / values
    members = bin_members(confidence)
    assert sorted(np.concatenate(members).tolist() if members else []) == (list(range(n)) if n >= MIN_ANSWERS else [])
    assert all(len(rows) >= MIN_ANSWERS for rows in members)
    ends = [(confidence[rows].min(), confidence[rows].max()) for rows in members]
    assert all(former[1] < latter[0] for former, latter in pairwise(ends)), "ties were divided"


@pytest.mark.parametrize(("n", "bins"), [(9, 0), (10, 1), (39, 1), (40, 2), (120, 6), (200, 10), (5_000, 10)])
def test_the_number_of_bins_follows_from_the_number_of_answers(n: int, bins: int) -> None:
    assert len(bin_members(np.random.default_rng(1).random(n))) == bins


def test_bins_are_those_of_scikit_learns_quantiles() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.random(400)
    correct = (generator.random(400) < confidence).astype(np.float64)
    bins = reliability_bins(confidence, correct, np.arange(400), resamples=50)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy="quantile")
    assert [part.n for part in bins] == [40] * 10
    assert [part.confidence for part in bins] == pytest.approx(mean.tolist())
    assert [part.accuracy.value for part in bins] == pytest.approx(accuracy.tolist())


def test_intervals_of_single_documents_are_close_to_wilsons() -> None:
    generator = np.random.default_rng(4)
    parts = np.repeat(np.eye(3, dtype=bool), 200, axis=1)
    correct = (generator.random(600) < 0.8).astype(np.float64)
    for part, share in zip(parts, part_shares(correct, parts, np.arange(600)), strict=True):
        wilson = binomtest(int(correct[part].sum()), 200).proportion_ci(method="wilson")
        assert (share.low, share.high) == pytest.approx((wilson.low, wilson.high), abs=0.012)


def test_documents_of_one_group_are_not_independent() -> None:
    correct = (np.random.default_rng(6).random(60) < 0.7).astype(np.float64)
    whole = np.ones((1, 60), dtype=bool)
    (single,) = part_shares(correct, whole, np.arange(60))
    (repeated,) = part_shares(np.repeat(correct, 5), np.repeat(whole, 5, axis=1), np.repeat(np.arange(60), 5))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=1e-6)


def test_parts_without_documents_or_variance_are_no_error() -> None:
    parts = np.array([[False] * 40, [True] * 20 + [False] * 20])
    empty, perfect = part_shares(np.ones(40), parts, np.arange(40))
    assert np.isnan(empty.value) and np.isnan(empty.low)
    assert perfect.value == perfect.high == 1.0 and 0.7 < perfect.low < 0.9
