"""The weighted AUROC equals scikit-learn's, ties and absent classes included."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from medmllm_plugins.metrics.ranking import MacroRanking, WeightedRanking, auroc_variances, log_odds


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
    )
)
def test_weighted_area_with_ties_equals_scikit_learn(rows):
    score, positive, *weights = (np.array(column) for column in zip(*rows, strict=True))
    result, precision = WeightedRanking(score.astype(float), positive)(np.stack(weights, axis=1).astype(float))
    for value, average, weight in zip(result, precision, weights, strict=True):
        if weight[positive].sum():
            expected = average_precision_score(positive, score, sample_weight=weight)
            assert average == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(average)
        if weight[positive].sum() and weight[~positive].sum():
            assert value == pytest.approx(roc_auc_score(positive, score, sample_weight=weight), abs=1e-12)
        else:
            assert np.isnan(value)


def test_hand_computed_area():
    # Positives 0.9 and 0.4, negatives 0.4 and 0.1: of four pairs three are won and one is a tie.
    ranking = WeightedRanking(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
    area, precision = ranking(np.ones((4, 1)))
    assert area == pytest.approx([3.5 / 4])
    # Precision is 1 at the first positive and 2/3 at the second, which shares its rank with a negative.
    assert precision == pytest.approx([(1 + 2 / 3) / 2])


@pytest.mark.parametrize("classes", [3, 5])
def test_macro_one_vs_rest_equals_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    truth = generator.integers(classes, size=200)
    scores = generator.normal(size=(200, classes))
    scores[np.arange(200), truth] += 1
    weights = generator.integers(0, 4, size=(200, 3)).astype(float)
    result, precision = MacroRanking(scores, truth)(weights)
    for b in range(3):
        expected = roc_auc_score(truth, softmax(scores, axis=1), multi_class="ovr", sample_weight=weights[:, b])
        assert result[b] == pytest.approx(expected, abs=1e-12)
        each = [
            average_precision_score(truth == k, softmax(scores, axis=1)[:, k], sample_weight=weights[:, b])
            for k in range(classes)
        ]
        assert precision[b] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_mean_runs_over_the_classes_that_occur():
    generator = np.random.default_rng(0)
    truth = np.array([0, 2] * 20)  # of four classes two never occur
    scores = generator.normal(size=(40, 4))
    probability = softmax(scores, axis=1)
    expected = np.mean([roc_auc_score(truth == k, probability[:, k]) for k in (0, 2)])
    assert MacroRanking(scores, truth)(np.ones((40, 1)))[0] == pytest.approx([expected])
    only_first = (truth == 0).astype(float)[:, None]
    assert np.isnan(MacroRanking(scores, truth)(only_first)).all()


@pytest.mark.parametrize("positive", [0, 1])
def test_of_two_classes_either_has_the_same_area(positive):
    generator = np.random.default_rng(1)
    truth = generator.integers(2, size=60)
    scores = generator.normal(size=(60, 2))
    expected = roc_auc_score(truth == positive, softmax(scores, axis=1)[:, positive])
    assert MacroRanking(scores, truth)(np.ones((60, 1)))[0] == pytest.approx([expected], abs=1e-12)


def test_log_odds_are_the_logit_of_the_softmax_and_ignore_a_shift():
    scores = np.random.default_rng(2).normal(size=(50, 4))
    probability = softmax(scores, axis=1)
    np.testing.assert_allclose(log_odds(scores), np.log(probability / (1 - probability)), atol=1e-10)
    np.testing.assert_allclose(log_odds(scores - 300.0), log_odds(scores), atol=1e-10)


def test_log_odds_do_not_saturate():
    scores = np.array([[0.0, -800.0, -900.0], [0.0, -801.0, -900.0]])
    assert (softmax(scores, axis=1)[:, 0] == 1).all()
    assert log_odds(scores)[:, 0] == pytest.approx([800.0, 801.0])


@pytest.mark.parametrize("ties", [False, True])
def test_rows_say_where_the_weights_of_documents_stand(ties):
    generator = np.random.default_rng(4)
    scores = generator.normal(size=(30, 2)).round(0 if ties else 9)
    truth, rows = generator.integers(2, size=30), generator.permutation(50)[:30]
    weights = generator.integers(0, 4, size=(50, 6)).astype(np.int32)
    result = MacroRanking(scores, truth, rows=rows)(weights)
    np.testing.assert_array_equal(result, MacroRanking(scores, truth)(weights[rows]))
    for b in range(6):  # whole numbers and floats are the same weights
        expected = roc_auc_score(truth, scores[:, 1] - scores[:, 0], sample_weight=weights[rows, b])
        assert result[0][b] == pytest.approx(expected, abs=1e-12)


def test_the_observed_variance_of_independent_documents_is_that_of_delong():
    generator = np.random.default_rng(0)
    positive = np.repeat([True, False], [30, 50])
    score = np.round(generator.normal(size=80) + positive, 1)
    wins = (score[:30, None] > score[30:]) + 0.5 * (score[:30, None] == score[30:])
    expected = wins.mean(1).var() / 30 + wins.mean(0).var() / 50
    assert auroc_variances(score, positive, np.arange(80))[0] == pytest.approx(expected)


@pytest.mark.parametrize("area", [0.5, 0.8, 0.98])
def test_the_expected_variance_of_independent_documents_is_that_of_normal_scores(area):
    """Of each pair of comparisons that share a document, the probability that both are won is bivariate normal."""
    shift = norm.ppf(area) * math.sqrt(2)
    score = np.concatenate([norm.ppf((np.arange(200) + 0.5) / 200) + shift, norm.ppf((np.arange(300) + 0.5) / 300)])
    positive = np.arange(500) < 200
    observed_area = roc_auc_score(positive, score)
    both = multivariate_normal.cdf(norm.ppf([observed_area] * 2), cov=[[1, 0.5], [0.5, 1]])
    spread = observed_area * (1 - observed_area)
    expected = (spread + 498 * (both - observed_area**2)) / (200 * 300)
    assert auroc_variances(score, positive, np.arange(500))[1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_expected_variance_is_that_of_simulations_with_correlated_scores(mixed):
    generator, areas, variances = np.random.default_rng(1), [], []
    group = np.repeat(np.arange(60), generator.integers(1, 10, 60))
    for _ in range(1500):
        positive = generator.random(len(group)) < 0.5 if mixed else (generator.random(60) < 0.5)[group]
        noise = math.sqrt(0.7) * generator.normal(size=60)[group] + math.sqrt(0.3) * generator.normal(size=len(group))
        score = 2.0 * positive + noise
        areas.append(roc_auc_score(positive, score))
        variances.append(auroc_variances(score, positive, group))
    # 1,500 simulations have a standard error of 4%; correlations within classes of few groups are a bit too low.
    assert np.mean(variances, axis=0) == pytest.approx([np.var(areas)] * 2, rel=0.15)


def test_the_inflation_of_an_auroc_is_one_where_everything_is_ranked_correctly():
    scores, truth = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), np.array([0, 0, 1, 1])
    assert MacroRanking(scores, truth).inflation(np.arange(4)) == 1.0
    observed, expected = auroc_variances(
        np.array([0.1, 0.7, 0.6, 0.9]), np.array([False, False, True, True]), np.arange(4)
    )
    shuffled = np.array([[0.0, 0.1], [0.0, 0.7], [0.0, 0.6], [0.0, 0.9]])
    assert MacroRanking(shuffled, truth).inflation(np.arange(4)) == pytest.approx(max(1, expected / observed))
