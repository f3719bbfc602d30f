"""Refits on resampled train folds are fits by hand on the same rows, with the penalty chosen again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from support.linear_probe import one_standard_error, scaled

from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import ProbeSpec
from medmllm_plugins.probes import fitting
from medmllm_plugins.probes.fitting import Site, fit_probes, refit_probes, select_sites
from medmllm_plugins.probes.labelled_features import (
    LabelledFeatures,
    half_groups,
    read_labelled_features,
    resample_groups,
)
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.sklearn_probe import SklearnProbe
from medmllm_plugins.results.feature_store import FeatureStore

OPTIONS = Options(permutations=0, controls=0)
RESAMPLES = 3
neighbours = SklearnProbe(KNeighborsClassifier(3))


def drawn(labelled: LabelledFeatures, seed: int = 0) -> Any:
    generator = np.random.default_rng((seed, 2))
    return resample_groups(labelled.of("train"), labelled.groups_of("train"), RESAMPLES, generator)


def some_sites(store: FeatureStore) -> list[Site]:
    """Sites of two widths, not in the store's order."""
    by_name = {(site.layer, site.pooling): site for site in select_sites(store, OPTIONS)}
    return [by_name["llm.00", "last"], by_name["vision.00", "mean"], by_name["connector", "mean"]]


def folds(store: FeatureStore, labelled: LabelledFeatures, site: Site) -> tuple[Any, Any, Any]:
    """Features of the three folds, scaled with the statistics of the train fold."""
    features = store.features(site.layer, site.pooling).astype(np.float64)
    train, validation, test = (features[labelled.rows[fold]] for fold in ("train", "validation", "test"))
    return scaled(train, train), scaled(train, validation), scaled(train, test)


def test_linear_refits_are_scikit_learns_with_sample_weights(make_store: Callable[..., Any]) -> None:
    store, _ = make_store(clear={"vision.00": 0.3, "llm.00": 0.2})
    labelled = read_labelled_features(store)
    sites = some_sites(store)
    refits = refit_probes(store, labelled, OPTIONS, sites, drawn(labelled))
    assert refits.sites == tuple(sites) and refits.test_log_p.dtype == np.float32
    assert refits.test.shape == (RESAMPLES, 3, 90) and refits.test_log_p.shape == (RESAMPLES, 3, 90, 3)
    truth = labelled.of("validation")
    for resample, weights in enumerate(drawn(labelled)):
        for index, site in enumerate(sites):
            train, validation, test = folds(store, labelled, site)
            models = [
                LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(
                    train[weights > 0], labelled.of("train")[weights > 0], sample_weight=weights[weights > 0]
                )
                for strength in OPTIONS.strengths
            ]
            tables = [model.predict_proba(validation) for model in models]
            groups = labelled.groups_of("validation")
            chosen_model = models[one_standard_error(tables, truth, groups, labelled.of("train"), weights)]
            expected = chosen_model.predict_proba(test)
            np.testing.assert_allclose(np.exp(refits.test_log_p[resample, index]), expected, atol=2e-3)
            chosen = refits.test_log_p[resample, index][np.arange(90), refits.test[resample, index]]
            np.testing.assert_allclose(chosen, refits.test_log_p[resample, index].max(1), atol=1e-5)
    assert len({tuple(row) for row in refits.test[:, 1].tolist()}) == RESAMPLES
    np.testing.assert_array_equal(refit_probes(store, labelled, OPTIONS, sites, drawn(labelled)).test, refits.test)


@pytest.fixture
def neighbours_plugin() -> Iterator[None]:
    class Plugin:
        @hookimpl
        def medmllm_probes(self) -> list[ProbeSpec]:
            return [ProbeSpec(name="neighbours", target=f"{__name__}:neighbours", summary="Nearest neighbours.")]

    plugin = Plugin()
    get_manager().pluggy.register(plugin, name="neighbours")
    yield
    get_manager().pluggy.unregister(plugin)


@pytest.mark.usefixtures("neighbours_plugin")
def test_other_probes_are_fitted_on_repeated_rows(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "BLOCK_BYTES", 4 * 16 * 40)  # the test fold is read in parts
    store, _ = make_store(clear={"vision.00": 0.3, "llm.00": 0.2})
    labelled = read_labelled_features(store)
    sites = some_sites(store)
    options = Options(protocol="neighbours", permutations=0, controls=0)
    refits = refit_probes(store, labelled, options, sites, drawn(labelled))
    for resample, weights in enumerate(drawn(labelled)):
        repeated = np.repeat(np.arange(len(weights)), weights)
        for index, site in enumerate(sites):
            features = store.features(site.layer, site.pooling).astype(np.float64)
            train, test = (features[labelled.rows[fold]] for fold in ("train", "test"))
            scaler = StandardScaler().fit(train[repeated])
            model = KNeighborsClassifier(3).fit(scaler.transform(train[repeated]), labelled.of("train")[repeated])
            expected = model.predict_proba(scaler.transform(test)).clip(1e-6)
            np.testing.assert_allclose(np.exp(refits.test_log_p[resample, index]), expected, atol=1e-5)
            np.testing.assert_array_equal(refits.test[resample, index], model.predict(scaler.transform(test)))


def test_refits_that_draw_every_group_once_are_the_fit(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_store()
    labelled = read_labelled_features(store)
    fitted = fit_probes(store, labelled, OPTIONS)
    refits = refit_probes(
        store, labelled, OPTIONS, fitted.sites, np.ones((2, len(labelled.rows["train"])), dtype=np.intp)
    )
    for resample in range(2):
        np.testing.assert_allclose(np.exp(refits.test_log_p[resample]), np.exp(fitted.test_log_p), atol=1e-4)


def test_the_papers_probe_is_refitted_too(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((30, 12, 18))
    labelled = read_labelled_features(store)
    site = next(site for site in select_sites(store, OPTIONS) if site.layer == "connector")
    refits = refit_probes(
        store, labelled, Options(protocol="paper", controls=0, permutations=0), [site], drawn(labelled)[:2]
    )
    np.testing.assert_allclose(np.exp(refits.test_log_p).sum(-1), 1, atol=1e-5)
    assert not np.array_equal(refits.test_log_p[0], refits.test_log_p[1])
    np.testing.assert_array_equal(refits.test, refits.test_log_p.argmax(-1))


def test_halves_are_whole_groups_and_half_of_each_class() -> None:
    truth = np.repeat([0, 0, 0, 0, 1, 1, 1, 2], 3)
    group = np.repeat(np.arange(8), 3)
    halves = half_groups(truth, group, 50, np.random.default_rng(0))
    assert set(halves.ravel().tolist()) == {0, 1}
    np.testing.assert_array_equal(halves, halves[:, ::3].repeat(3, axis=1))
    for number, kept in ((0, 6), (1, 6), (2, 3)):  # of odd numbers the larger half
        assert set(halves[:, truth == number].sum(1)) == {kept}
    assert len({tuple(half) for half in halves.tolist()}) > 10


def test_resamples_keep_groups_together_and_every_class() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), generator.integers(1, 5, 40))
    truth = np.where(group < 2, 2, group % 2)
    truth[-1] = 1 - truth[-1]  # a group of two classes
    weights = resample_groups(truth, group, 2000, generator)
    assert weights.shape == (2000, len(group)) and torch.from_numpy(weights).dtype == torch.int64
    for number in range(40):
        assert (weights[:, group == number] == weights[:, group == number][:, :1]).all()
    first = np.unique(group, return_index=True)[1]
    assert (weights[:, first].sum(1) == 40).all()
    assert (weights[:, first[:2]].sum(1) == 2).all()  # the rare class
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.1)  # four standard errors
    variance = weights[:, first].var(0)
    assert variance[2:].mean() == pytest.approx(1 - 1 / 19, abs=0.05) and variance[0] == pytest.approx(0.5, abs=0.05)
