"""Features of one's own: the figures of an analysis and of scikit-learn, all controls, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from support.linear_probe import scaled

from medmllm_plugins import DataError, OptionError, SklearnProbe, probe_features
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.probe_options import Options

QUICK = {"permutations": 3, "controls": 2}
CLASSES = ("a", "b", "c")


@pytest.fixture
def labelled() -> dict[str, Any]:
    """Labels, patients and folds of 180 documents, two of each patient."""
    patients = np.repeat(np.arange(90), 2)
    folds = np.where(patients < 45, "train", np.where(patients < 60, "validation", "test"))
    return {"labels": np.array(CLASSES)[patients % 3], "groups": patients, "folds": folds}


def clear(labels: Any, width: int = 8, noise: float = 0.6, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((3, width))
    return centres[np.searchsorted(CLASSES, labels)] + noise * generator.standard_normal((len(labels), width))


def drawn(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def test_the_points_are_those_of_an_analysis(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(clear={"vision.00": 0.3})
    analysis = analyse(store, outcomes, Options(permutations=3, controls=2, refits=0, repeats=1))
    sites = [point.site for point in analysis.points]
    results = probe_features(
        {site: store.features(*site) for site in sites if not site[0].startswith("control.")},
        store.index["label"],
        groups=store.index["group"],
        folds=store.index["fold"],
        control_features={name: store.features(name, "mean") for name, _ in sites if name.startswith("control.")},
        repeats=1,
        **QUICK,  # type: ignore[arg-type]
    )
    assert [point.site for point in results.points] == sites
    for own, expected in zip(results.points, analysis.points, strict=True):
        for name in ("accuracy", "balanced", "bits", "control", "selectivity"):
            figures = getattr(own, name), getattr(expected, name)
            assert figures[0].to_dict() == pytest.approx(figures[1].to_dict(), abs=1e-6), (own.site, name)
        assert own.accuracy.value == expected.accuracy.value and own.repeats == expected.repeats
        assert (own.p, own.C, own.part, own.width) == (expected.p, expected.C, expected.part, expected.width)
        assert own.p_holm == pytest.approx(expected.p_holm, nan_ok=True)
        assert own.label_permutation == pytest.approx(expected.label_permutation)
    assert (results.majority, results.groups, results.labels) == (analysis.majority, analysis.groups, analysis.labels)
    assert results.counts == analysis.counts and results.control_types == analysis.control_types
    assert results.best.site == analysis.best.site and results.warnings == ()


def test_accuracy_is_that_of_scikit_learn(labelled: dict[str, Any]) -> None:
    features = clear(labelled["labels"], noise=2.0)
    train, test = (labelled["folds"] == fold for fold in ("train", "test"))
    point = probe_features(features, **labelled, **QUICK)["features"]
    model = LogisticRegression(C=point.C, tol=1e-8, max_iter=2000)
    model.fit(scaled(features[train], features[train]), labelled["labels"][train])
    expected = model.score(scaled(features[train], features[test]), labelled["labels"][test])
    assert 0.4 < expected < 0.95 and point.accuracy.value == pytest.approx(expected, abs=0.017)

    nearest = SklearnProbe(KNeighborsClassifier(5))
    point = probe_features(features, **labelled, probe=nearest, **QUICK)["features"]
    scaler = StandardScaler().fit(features[train])
    by_hand = KNeighborsClassifier(5).fit(scaler.transform(features[train]), labelled["labels"][train])
    expected = by_hand.score(scaler.transform(features[test]), labelled["labels"][test])
    assert point.accuracy.value == pytest.approx(expected, abs=0.017)


def test_images_bring_the_control_task_and_control_features(labelled: dict[str, Any]) -> None:
    features = {"clear": clear(labelled["labels"]), ("llm.03", "last"): clear(labelled["labels"], 4, noise=50.0)}
    results = probe_features(
        features, **labelled, images=drawn(180), control_features={"x": features["clear"]}, **QUICK
    )
    assert [point.layer for point in results.points] == [
        *("clear", "llm.03", "control.x", "control.pixels", "control.border", "control.corners", "control.centre"),
    ]
    clearest, noise = results["clear"], results["llm.03", "last"]
    assert clearest.selectivity.low > 0.2 and clearest.p_holm < 0.01 < noise.p_holm
    assert clearest.label_permutation_high < clearest.balanced.low and results.control_types > 1
    assert (clearest.part, noise.part, results.best.site) == ("features", "llm", ("clear", "none"))
    frame = results.frame()
    (value,) = frame.query("layer == 'clear' and fold == 'test' and metric == 'selectivity'")["value"]
    assert value == clearest.selectivity.value and results.warnings == ()


def test_what_is_missing_is_said(labelled: dict[str, Any]) -> None:
    features = clear(labelled["labels"])
    results = probe_features(features, labelled["labels"], **QUICK)  # type: ignore[arg-type]
    assert np.isnan(results["features"].control.value) and results.counts["test"] > 20
    assert [text.split(",")[0] for text in results.warnings] == [
        "Each row counts as a group of its own. If several rows are of one patient",
        "There is no control task and there are no control features",
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"groups": [0]}, DataError, "`groups` to have 180 entries"),
        ({"folds": ["dev"] * 180}, DataError, "`folds` among train, validation, test, got \\['dev'\\]"),
        ({"features": np.zeros((180, 2, 2))}, DataError, r"features: expected numbers of shape \(180, d\)"),
        ({"features": np.zeros((179, 2))}, DataError, "a row for each label"),
        ({"features": np.full((180, 2), np.nan)}, DataError, "NaN or infinity in 180 of 180 rows"),
        ({"features": {}}, DataError, "at least one array"),
        ({"features": {"control.mine": np.zeros((180, 2))}}, OptionError, "Use `control_features`"),
        ({"images": []}, DataError, "an image for each row"),
        ({"images": drawn(3)}, DataError, r"control.pixels \(mean\): expected numbers of shape \(180, d\)"),
        ({"classes": ("a", "b")}, DataError, r"`classes` to hold every label, got none for \['c'\]"),
        ({"probe": "linaer"}, OptionError, "`probe` to be a probe or one of"),
        ({"permutations": -1}, OptionError, "`permutations` to be at least 0"),
        ({"device": "gpu"}, OptionError, "Expected `device`"),
        ({"folds": ["train"] * 180}, DataError, "documents in the validation fold, got none"),
    ],
)
def test_wrong_arguments_are_named(
    labelled: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"features": clear(labelled["labels"]), **labelled, **QUICK, **change}
    with pytest.raises(error, match=message):
        probe_features(**arguments)


def test_an_unknown_site_is_named(labelled: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"Expected a site among \[\('features', 'none'\)\], got 'feature'"):
        probe_features(clear(labelled["labels"]), **labelled, **QUICK)["feature"]
