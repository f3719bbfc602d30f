"""Least squares in closed form gives what scikit-learn fits, for real and permuted labels, and never sees a group."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medmllm_plugins.probes.grouped_ridge import (
    FOLDS,
    PENALTY,
    auroc,
    cross_validated_weights,
    inner_products,
    predict_classes,
    transfer_weights,
)


def expanded(features: np.ndarray) -> np.ndarray:
    """Standardise, limit, square, and scale as the module's docstring says."""
    standard = np.clip((features - features.mean(0)) / features.std(0), -5, 5)
    squares = standard**2
    both = np.concatenate([standard, (squares - squares.mean(0)) / squares.std(0)], axis=1)
    return both / np.sqrt((both**2).sum(1).mean())


def test_predictions_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 9)).astype(np.float32)
    features[3, 2] = 40
    targets = generator.normal(size=60)
    weights = transfer_weights(inner_products(features), np.arange(40), np.arange(40, 60))
    reference = Ridge(alpha=PENALTY * 40).fit(expanded(features.astype(float))[:40], targets[:40])
    assert np.allclose(weights @ targets[:40], reference.predict(expanded(features.astype(float))[40:]), atol=1e-4)


def test_a_document_has_no_weight_for_its_own_group() -> None:
    generator = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 3)
    weights = cross_validated_weights(inner_products(generator.normal(size=(36, 5)).astype(np.float32)), group)
    same = group[:, None] == group
    assert (weights[same] == 0).all() and np.allclose(weights.sum(1), 1)
    assert (weights != 0).sum(1).min() >= 36 - 3 * -(-12 // FOLDS)


def test_classes_count_alike_and_label_sets_are_treated_alike() -> None:
    generator = np.random.default_rng(2)
    truth = generator.choice(3, 300, p=[0.8, 0.1, 0.1])
    features = (generator.normal(size=(300, 4)) + 1.5 * np.eye(3, 4)[truth]).astype(np.float32)
    weights = cross_validated_weights(inner_products(features), np.arange(300))
    sets = np.concatenate([truth[None], [generator.permutation(truth) for _ in range(40)]])
    predicted = predict_classes(weights, sets, 3)
    assert balanced_accuracy_score(truth, predicted[0]) > 0.65
    assert (predicted == np.concatenate([predict_classes(weights, one[None], 3) for one in sets])).all()
    chance = [balanced_accuracy_score(labels, row) for labels, row in zip(sets[1:], predicted[1:], strict=True)]
    assert abs(np.mean(chance) - 1 / 3) < 0.05


def test_areas_under_the_curve_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, (5, 50))
    weights = cross_validated_weights(inner_products(generator.normal(size=(50, 3)).astype(np.float32)), np.arange(50))
    assert np.allclose(auroc(weights, labels), [roc_auc_score(row, weights @ row) for row in labels])


def test_features_that_do_not_vary_tell_nothing() -> None:
    products = inner_products(np.full((20, 3), 7.0, dtype=np.float32))
    labels = np.repeat([[0, 1]], 10, axis=1).reshape(1, 20)
    weights = cross_validated_weights(products, np.arange(20))
    assert np.isfinite(weights).all() and np.isfinite(predict_classes(weights, labels, 2)).all()
