"""Usable information in cases whose value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, mutual_info_score

from medmllm_plugins.metrics.usable_information import (
    class_log_frequencies,
    information_of_answers,
    information_of_probabilities,
)


def test_it_is_the_difference_of_scikit_learns_log_losses() -> None:
    generator = np.random.default_rng(0)
    train, truth = generator.integers(0, 3, 200), generator.integers(0, 3, 90)
    probability = generator.dirichlet((1, 1, 1), 90)
    frequencies = class_log_frequencies(train, 3)
    bits = information_of_probabilities(np.log(probability), truth, frequencies)
    ignoring = log_loss(truth, np.tile(np.exp(frequencies), (90, 1)), labels=range(3))
    assert bits.mean() == pytest.approx((ignoring - log_loss(truth, probability)) / math.log(2))


def test_certain_and_correct_predictions_have_the_entropy_of_the_classes() -> None:
    truth = np.repeat(np.arange(4), 25)
    bits = information_of_probabilities(np.log(np.eye(4)[truth] + 1e-300), truth, class_log_frequencies(truth, 4))
    assert bits.mean() == pytest.approx(2.0)


@pytest.mark.parametrize("renamed", [False, True])
def test_answers_have_their_mutual_information_whatever_they_are_called(renamed: bool) -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3, 30_000)
    answers = np.where(generator.random(30_000) < 0.7, truth, generator.integers(0, 3, 30_000))
    answers[generator.random(30_000) < 0.1] = -1
    if renamed:
        answers = np.where(answers < 0, -1, (answers + 1) % 3)
    bits = information_of_answers(answers, truth, np.arange(30_000), class_log_frequencies(truth, 3))
    assert bits.mean() == pytest.approx(mutual_info_score(truth, answers) / math.log(2), abs=0.002)


def test_answers_of_one_group_say_nothing_of_its_own_documents() -> None:
    """Each group has an answer of its own class, so its own documents would give the class away."""
    truth = np.repeat([0, 1, 0, 1], 50)
    bits = information_of_answers(np.repeat([0, 1, 2, 3], 50), truth, truth, np.log([0.5, 0.5, 1e-9, 1e-9]))
    assert bits.mean() == pytest.approx(0.0, abs=1e-6)


def test_guesses_have_no_information() -> None:
    generator = np.random.default_rng(2)
    truth, answers = generator.integers(0, 4, 20_000), generator.integers(0, 4, 20_000)
    bits = information_of_answers(answers, truth, np.arange(20_000), class_log_frequencies(truth, 4))
    assert bits.mean() == pytest.approx(0.0, abs=0.003)
