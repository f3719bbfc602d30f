"""Blind answers score what scikit-learn's dummy classifier and simulation say."""

import numpy as np
import pytest
import sklearn.metrics as reference
from sklearn.dummy import DummyClassifier

from medmllm_plugins.metrics.guessing import baselines, majority_class


def test_majority_class_equals_the_dummy_classifier():
    support = np.array([30.0, 90, 12, 0])
    truth = np.repeat(np.arange(4), support.astype(int))
    images = np.zeros((truth.size, 1))
    answer = DummyClassifier(strategy="most_frequent").fit(images, truth).predict(images)
    assert baselines(support)["majority_class"] == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, answer),
            "balanced": reference.balanced_accuracy_score(truth, answer),
            "macro_f1": reference.f1_score(truth, answer, average="macro"),
            "mcc": reference.matthews_corrcoef(truth, answer),
        }
    )


def test_the_first_of_several_largest_classes_is_the_majority():
    assert majority_class(np.array([3.0, 8, 8])) == 1


def test_expectations_of_random_answers_equal_a_simulation():
    support = np.array([300.0, 90, 10])
    truth = np.repeat(np.arange(3), support.astype(int))
    generator = np.random.default_rng(0)
    uniform = generator.integers(3, size=(3000, truth.size))
    prior = generator.choice(3, p=support / support.sum(), size=(3000, truth.size))
    result = baselines(support)
    assert result["uniform_random"]["accuracy"] == pytest.approx((uniform == truth).mean(), abs=2e-3)
    recalls = [(uniform[:, truth == k] == k).mean() for k in range(3)]
    assert result["uniform_random"]["balanced"] == pytest.approx(np.mean(recalls), abs=5e-3)
    assert result["prior_matched_random"]["accuracy"] == pytest.approx((prior == truth).mean(), abs=2e-3)
