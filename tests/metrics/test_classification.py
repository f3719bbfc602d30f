"""Metrics of hard answers equal scikit-learn's, with unparsed answers, absent classes and several tables at once."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from medmllm_plugins.metrics import classification


def table(truth, answer, classes):
    counts = np.zeros((classes, classes + 1))
    np.add.at(counts, (truth, answer), 1)
    return counts


@st.composite
def answers(draw):
    """True classes and answers as indices; the index K means not parsed. Classes are often absent."""
    classes = draw(st.integers(2, 5))
    size = draw(st.integers(1, 30))
    truth = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    answer = draw(st.lists(st.integers(0, classes), min_size=size, max_size=size))
    return np.array(truth), np.array(answer), classes


@settings(max_examples=100)
@given(answers())
def test_equal_to_scikit_learn(drawn):
    truth, answer, classes = drawn
    counts = table(truth, answer, classes)
    present = sorted(set(truth))
    everything = list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": reference.accuracy_score(truth, answer),
            "balanced": reference.balanced_accuracy_score(truth, answer),
            "macro_f1": reference.f1_score(truth, answer, labels=present, average="macro", zero_division=0),
            "mcc": reference.matthews_corrcoef(truth, answer),
        }
        precision, recall, f1, _ = reference.precision_recall_fscore_support(
            truth, answer, labels=everything, zero_division=np.nan
        )
    by_name = {
        "accuracy": classification.accuracy(counts),
        "balanced": classification.balanced_accuracy(counts),
        "macro_f1": classification.macro_f1(counts),
        "mcc": classification.matthews(counts),
    }
    assert {k: float(v) for k, v in by_name.items()} == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(classification.precision(counts), precision, atol=1e-12)
    np.testing.assert_allclose(classification.sensitivity(counts), recall, atol=1e-12)
    # Where recall is 0 and precision undefined, f1 is 0 by its own definition, as scikit-learn's is.
    np.testing.assert_allclose(classification.f1(counts), f1, atol=1e-12)


@settings(max_examples=50)
@given(answers())
def test_shares_of_parsed_answers(drawn):
    truth, answer, classes = drawn
    counts = table(truth, answer, classes)
    parsed = answer < classes
    assert classification.parsed_share(counts) == pytest.approx(parsed.mean())
    if parsed.any():
        expected = (truth[parsed] == answer[parsed]).mean()
        assert classification.accuracy_on_parsed(counts) == pytest.approx(expected)
    else:
        assert np.isnan(classification.accuracy_on_parsed(counts))


@settings(max_examples=50)
@given(answers())
def test_specificity_counts_unparsed_answers_as_wrong(drawn):
    truth, answer, classes = drawn
    result = classification.specificity(table(truth, answer, classes))
    for k in range(classes):
        negatives = truth != k
        if negatives.any():
            assert result[k] == pytest.approx(((answer != k) & (answer != classes))[negatives].mean())
        else:
            assert np.isnan(result[k])


def test_with_two_classes_specificity_is_the_other_sensitivity():
    counts = np.array([[50.0, 7, 3], [4, 30, 6]])
    sensitivity = classification.sensitivity(counts)
    np.testing.assert_allclose(classification.specificity(counts), sensitivity[::-1])
    assert classification.balanced_accuracy(counts) == pytest.approx(sensitivity.mean())


def test_a_class_never_answered_stays_in_macro_f1():
    # F1: 2*8/(2*8+6+2) = 2/3 for the first class; the second is never answered, the third is never true.
    counts = np.array([[8.0, 0, 1, 1], [6, 0, 0, 0], [0, 0, 0, 0]])
    assert classification.macro_f1(counts) == pytest.approx((2 / 3 + 0) / 2)
    assert np.isnan(classification.precision(counts)[1])
    assert classification.f1(counts)[2] == 0


def test_tables_are_independent_of_each_other():
    generator = np.random.default_rng(3)
    tables = generator.integers(0, 4, size=(6, 3, 4)).astype(float)
    tables[0, 1] = 0
    for metric in (
        classification.accuracy,
        classification.parsed_share,
        classification.accuracy_on_parsed,
        classification.balanced_accuracy,
        classification.macro_f1,
        classification.matthews,
        classification.sensitivity,
        classification.specificity,
        classification.precision,
        classification.f1,
    ):
        together = metric(tables)
        np.testing.assert_array_equal(together, np.stack([metric(entry) for entry in tables]), err_msg=metric.__name__)


def test_matthews_of_perfect_answers_is_one_also_for_large_counts():
    counts = np.zeros((3, 4))
    counts[np.arange(3), np.arange(3)] = [100_003, 7, 49_999]
    assert classification.matthews(counts) == pytest.approx(1.0, abs=1e-12)
    assert classification.matthews(counts) <= 1.0
