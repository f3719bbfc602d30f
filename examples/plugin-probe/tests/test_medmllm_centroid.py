"""The plugin is found, and its probe passes the checks of medmllm-plugins."""

import numpy as np
from medmllm_plugins import discover, probe_features
from medmllm_plugins.testing import parametrize_with_checks
from sklearn.neighbors import NearestCentroid

from medmllm_centroid import medmllm_probes
from medmllm_centroid.probe import fit_nearest_centroids


@parametrize_with_checks(medmllm_probes())
def test_probe(spec, check):
    """Try the probe on features with and without the class."""
    check(spec)


def test_accuracy_is_that_of_scikit_learn():
    """The classes of the test fold are those that scikit-learn predicts."""
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = np.eye(3)[labels] @ generator.standard_normal((3, 6)) + generator.standard_normal((240, 6))
    folds = np.where(np.arange(240) < 120, "train", np.where(np.arange(240) < 180, "validation", "test"))
    results = probe_features(features, labels, folds=folds, probe=fit_nearest_centroids)
    expected = NearestCentroid().fit(features[:120], labels[:120]).score(features[180:], labels[180:])
    assert abs(results["features"].accuracy.value - expected) < 1e-6


def test_plugin_is_found(monkeypatch):
    """It is installed, and nothing about it fails."""
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    assert "centroid" in manager.probes()
