"""Simulated stages: they hold what is said of them, and the answers are as good as the best classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import norm

from medmllm_plugins.errors import OptionError
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.validation.simulated_stages import SimulatedStages, diagnose_simulated, simulate_run

SMALL = SimulatedStages(widths=(64, 96, 192), sizes={"train": 240, "validation": 90, "test": 150})
SITES = (("vision.01", "mean"), ("connector", "mean"), ("llm.norm", "last"))


def test_all_stages_of_an_isometry_have_the_same_distances(tmp_path: Path) -> None:
    store = simulate_run(SMALL, tmp_path).store
    assert [store.features(*site).shape for site in SITES] == [(480, 64), (480, 96), (480, 192)]
    distances = [pdist(store.features(*site).astype(np.float64)) for site in SITES]
    for other in distances[1:]:  # of float16
        np.testing.assert_allclose(other, distances[0], rtol=5e-3)


def test_means_and_noise_of_independent_stages_are_those_of_the_model(tmp_path: Path) -> None:
    sizes = {"train": 6000, "validation": 30, "test": 30}
    stages = replace(SMALL, variant="noise", classes=3, sizes=sizes, group=2, correlation=0.5)
    store = simulate_run(stages, tmp_path).store
    labels = store.index["label"].astype(str).to_numpy()
    residuals = []
    for site in SITES:
        features = store.features(*site)
        means = np.array([features[labels == label].mean(0) for label in store.header.labels])
        # Each estimated mean has a variance of its own in every dimension.
        expected = np.sqrt(stages.separation**2 + 2 * features.shape[1] * 1.5 / 2000)
        np.testing.assert_allclose(pdist(means), expected, rtol=0.03)
        noise = features - means[np.unique(labels, return_inverse=True)[1]]
        assert noise.var() == pytest.approx(1, abs=0.02)
        pairs = noise[store.index["fold"] == "train"].reshape(-1, 2, features.shape[1])
        assert (pairs[:, 0] * pairs[:, 1]).mean() == pytest.approx(0.5, abs=0.02)
        residuals.append(noise[:, :64].ravel())
    assert np.abs(np.corrcoef(residuals) - np.eye(3)).max() < 0.01


@pytest.mark.parametrize("variant", ["isometry", "noise"])
def test_answers_are_the_best_classifiers_or_guesses(tmp_path: Path, variant: Any) -> None:
    """With two classes the best classifier reaches Phi(separation / 2)."""
    sizes = {"train": 4, "validation": 4, "test": 4000}
    stages = SimulatedStages(
        variant=variant, widths=(48, 48, 64), classes=2, sizes=sizes, separation=3.0, group=1, correlation=0
    )
    run = simulate_run(stages, tmp_path / "best")
    best = float(norm.cdf(1.5))
    assert np.mean([outcome.predicted == outcome.label for outcome in run.outcomes]) == pytest.approx(best, abs=0.02)
    hits = [run.reference.predicted[outcome.id] == outcome.label for outcome in run.outcomes]
    assert np.mean(hits) == pytest.approx(best, abs=0.02)
    guessed = simulate_run(replace(stages, answers="guessed"), tmp_path / "guessed")
    hits = [outcome.predicted == outcome.label for outcome in guessed.outcomes]
    assert np.mean(hits) == pytest.approx(0.5, abs=0.03)


def test_a_lossless_model_is_not_charged() -> None:
    analysis = diagnose_simulated(SMALL, Options(permutations=1, controls=1))
    assert analysis.diagnosis.named is None and len(analysis.points) == 8
    assert min(point.accuracy.value for point in analysis.points if point.part != "control") > 0.8


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(OptionError, match="at least 48"):
        SimulatedStages(widths=(16, 64, 64))
