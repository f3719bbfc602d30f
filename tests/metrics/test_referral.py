"""Accuracy when the least confident answers are referred, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.metrics.referral import REFERRED, ReferralCurve, referral


def answers(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.random(n)
    return confidence, (generator.random(n) < confidence).astype(np.float64)


def test_accuracy_is_that_of_the_answers_that_are_kept() -> None:
    confidence, correct = answers(1, 400)  # 2.5% of 400 are whole answers
    result = referral(confidence, correct, np.arange(400), resamples=20)
    ranked = correct[np.argsort(-confidence)]
    for share, accuracy in zip(REFERRED, result.accuracy, strict=True):
        assert accuracy.value == pytest.approx(ranked[: round(400 * (1 - share))].mean())
    assert result.accuracy[0].value == correct.mean()
    assert result.accuracy[-1].value > result.accuracy[0].value


@given(st.integers(0, 1_000), st.integers(1, 80))
def test_the_area_is_the_mean_risk_over_all_coverages(seed: int, n: int) -> None:
    confidence, correct = answers(seed, n)
    wrong = 1 - correct[np.argsort(-confidence)]
    risks = [wrong[:kept].mean() for kept in range(1, n + 1)]
    area = ReferralCurve(confidence, correct)(np.ones((n, 1)))["area"]
    assert area == pytest.approx(np.mean(risks))


def test_confidence_without_information_leaves_accuracy_as_it_is() -> None:
    correct = np.tile([1.0, 1.0, 0.0, 1.0], 25)
    result = referral(np.full(100, 0.5), correct, np.arange(100), resamples=20)
    assert [accuracy.value for accuracy in result.accuracy] == pytest.approx([0.75] * len(REFERRED))
    assert result.area.value == pytest.approx(0.25)


def test_a_weight_counts_as_that_many_documents() -> None:
    confidence, correct = answers(8, 60)
    weights = np.random.default_rng(9).integers(0, 3, size=60)
    drawn = np.repeat(np.arange(60), weights)
    direct = ReferralCurve(confidence[drawn], correct[drawn])(np.ones((len(drawn), 1)))
    weighted = ReferralCurve(confidence, correct)(weights[:, None])
    assert weighted["accuracy"] == pytest.approx(direct["accuracy"])
    assert weighted["area"] == pytest.approx(direct["area"], abs=0.01)


def test_intervals_hold_the_value_and_grow_with_groups() -> None:
    confidence, correct = answers(3, 200)
    single = referral(confidence, correct, np.arange(200))
    copied = referral(np.repeat(confidence, 3), np.repeat(correct, 3), np.repeat(np.arange(200), 3))
    for alone, copies in zip(single.accuracy, copied.accuracy, strict=True):
        assert alone.low <= alone.value <= alone.high
        assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert single.area.low < single.area.value < single.area.high
