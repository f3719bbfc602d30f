"""Shortcuts are warned of where there are some and nowhere else: tagged phantoms, shifts, and data without either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.features.store import write_header
from medmllm_plugins.features.store_writer import FeatureBatch, Writer
from medmllm_plugins.probes import nuisance, shortcuts
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.nuisance import class_from_columns
from medmllm_plugins.probes.shortcuts import shortcut_report
from medmllm_plugins.probes.validation.tagged_images import tagged
from medmllm_plugins.prompts.feature_options import MEAN
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer
from medmllm_plugins.results.shortcut_records import ShortcutReport

SIMULATIONS = 100
SIZES: dict[Fold, int] = {"train": 320, "validation": 40, "test": 240}
TAGS: dict[str, Callable[[Dataset, int], Dataset]] = {
    "none": lambda data, seed: data,
    "all folds": lambda data, seed: tagged(data),
    "train alone": lambda data, seed: tagged(data, ("train",)),
    "weak": lambda data, seed: tagged(data, agreement=0.7, seed=seed),
}


def report_of(data: Dataset, folder: Any, seed: int) -> ShortcutReport:
    """Write the control features of some phantoms, whole patients in random order, and test them."""
    generator = np.random.default_rng((seed, 9))
    documents = []
    for fold, size in SIZES.items():
        members = data.select([fold])
        order = {name: rank for rank, name in enumerate(generator.permutation(sorted({d.group for d in members})))}
        documents += sorted(members, key=lambda document: order[document.group])[:size]
    features = [control_features(data.image(document)) for document in documents]
    layers = [StoredLayer(name, "control", (MEAN,), values.shape) for name, values in features[0].items()]
    header = Header("t", "d", data.spec.labels, "", "m", "", tuple(layers))
    write_header(folder, header)
    writer = Writer(folder, 0)
    records = [
        {"id": d.id, "document": d.id, "group": d.group, "fold": d.fold, "label": d.labels[0], "answer": ""}
        | dict.fromkeys(("scores", "blank", "label_tokens"))
        for d in documents
    ]
    arrays = {f"{name}/{MEAN}": np.stack([one[name] for one in features]).astype(np.float32) for name in features[0]}
    writer.add(FeatureBatch(records, [], [], arrays))
    writer.close()
    store = FeatureStore(folder)
    return shortcut_report(store, read_labelled_features(store), seed=seed)


def test_a_tag_in_the_corner_is_warned_of(tmp_path: Any) -> None:
    reports = {name: report_of(tag(phantom_dataset(), 0), tmp_path / name, 0) for name, tag in TAGS.items()}
    assert reports["none"].warnings == () and not reports["none"].folds_differ
    for name in ("all folds", "weak"):
        border, corners = reports[name].warnings
        assert border.startswith("The class can be read from the border of the images alone: balanced accuracy ")
        assert "corners" in corners and not reports[name].folds_differ
    in_train = reports["train alone"]
    assert in_train.folds_differ and len(in_train.warnings) == 4
    corners = in_train.check("control.corners")
    assert corners is not None and corners.readable == ("train",) and corners.dropped
    assert any(check.shifted for check in in_train.checks)
    assert corners.within_train.value > 0.7 and corners.to_test.value < 0.35
    centre = in_train.check("control.centre")
    assert centre is not None and not (centre.readable or centre.shifted or centre.dropped)
    assert ShortcutReport.from_dict(in_train.to_dict()) == in_train


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(TAGS))
def test_warnings_over_twenty_seeds(tmp_path: Any, name: str) -> None:
    reports = [report_of(TAGS[name](phantom_dataset(), seed), tmp_path / str(seed), seed) for seed in range(20)]
    warned = sum(bool(report.warnings) for report in reports)
    assert warned <= 1 if name == "none" else warned >= 19
    assert sum(report.folds_differ for report in reports) == (20 if name == "train alone" else 0)


def synthetic(
    generator: np.random.Generator, *, groups: int, correlation: float, classes: int, largest: int = 5
) -> ShortcutReport:
    """Return the report of features and columns that tell neither class nor fold.

    Documents of a group are correlated. Sizes of groups are drawn from 1 to ``largest``, small ones more often.
    """
    sizes = np.ceil(largest ** generator.uniform(0, 1, groups)).astype(int)
    group = np.repeat(np.arange(groups), sizes)
    truth = np.where(generator.random(len(group)) < 0.8, generator.integers(0, classes, groups)[group], 0)
    fold = np.where(np.arange(groups) % 2 == 0, "train", "test")[group]
    features = {}
    for layer in ("control.pixels", "control.border", "control.corners", "control.centre", "vision.00"):
        shared = generator.normal(size=(groups, 30))[group]
        noise = generator.standard_t(4, (len(group), 30))
        features[layer] = (correlation**0.5 * shared + (1 - correlation) ** 0.5 * noise).astype(np.float32)
    rows: dict[Fold, Any] = {name: np.flatnonzero(fold == name) for name in FOLDS}
    for members in rows.values():
        if len(members):
            truth[generator.choice(members, classes, replace=False)] = np.arange(classes)
    layers = [StoredLayer(name, name.split(".")[0], (MEAN,), (30,)) for name in features]

    class Memory:
        header = Header("t", "d", tuple("abcdefg"[:classes]), "", "m", "", tuple(layers))

        def features(self, layer: str, pooling: str, rows: Any) -> Any:
            return features[layer][rows]

    columns = {
        "scanner": generator.integers(0, 4, groups)[group].astype(str),
        "sex": generator.integers(0, 2, groups)[group].astype(str),
        "age": generator.normal(60, 12, groups)[group].round(1).astype(str),
    }
    labelled = shortcuts.LabelledFeatures(Memory.header.labels, truth, group, rows)
    seed = int(generator.integers(1 << 30))
    nuisances = class_from_columns(columns, labelled, seed)
    return shortcut_report(Memory(), labelled, nuisances=nuisances, seed=seed)  # type: ignore[arg-type]


def alarms(report: ShortcutReport) -> dict[str, bool]:
    """Return which kinds of warning a report has."""
    together = report.columns_together
    return {
        "class readable": any(check.readable for check in report.checks),
        "folds differ": any(check.shifted for check in report.checks),
        "class read less well": any(check.dropped for check in report.checks),
        "column": any(nuisance.explains_class for nuisance in report.nuisances),
        "columns together": together is not None and together.explains_class,
        "any": bool(report.warnings),
    }


def false_alarms(count: int, monkeypatch: pytest.MonkeyPatch, seed: int = 5, **settings: Any) -> dict[str, float]:
    """Return the share of reports with each alarm without the margins, which would hide what the tests do."""
    for name in ("CLASS_MARGIN", "DROP_MARGIN", "SHIFT_MARGIN"):
        monkeypatch.setattr(shortcuts, name, -1.0)
    generator = np.random.default_rng(seed)
    raised = [alarms(synthetic(generator, **settings)) for _ in range(count)]
    return {kind: float(np.mean([report[kind] for report in raised])) for kind in raised[0]}


def test_data_without_shortcuts_raise_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shortcuts, nuisance):
        monkeypatch.setattr(module, "PERMUTATIONS", 399)
    assert false_alarms(20, monkeypatch, groups=60, correlation=0.5, classes=3)["any"] <= 0.15


@pytest.mark.exhaustive
@pytest.mark.parametrize("largest", [1, 5, 30])
@pytest.mark.parametrize("groups", [20, 40, 100, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("classes", [2, 7])
def test_false_alarms_are_at_most_five_percent(
    monkeypatch: pytest.MonkeyPatch, groups: int, correlation: float, classes: int, largest: int
) -> None:
    if groups == 200 and largest == 30:
        pytest.skip("2,000 documents in each of 100 simulations take hours")
    settings = {"groups": groups, "correlation": correlation, "classes": classes, "largest": largest}
    rates = false_alarms(SIMULATIONS, monkeypatch, **settings)
    print(settings, rates)
    assert max(rates.values()) <= 0.05 + 2 * (0.05 * 0.95 / SIMULATIONS) ** 0.5


def test_other_shares_of_the_classes_are_no_shift(make_store: Callable[..., Any]) -> None:
    """Features that tell the class well must not tell a fold with other shares of the classes."""
    store, _ = make_store((600, 30, 300), group=1)
    labelled = read_labelled_features(store)
    test = labelled.rows["test"]
    uneven = np.concatenate([test[labelled.truth[test] == 0][:20], test[labelled.truth[test] != 0]])
    report = shortcut_report(store, replace(labelled, rows={**labelled.rows, "test": np.sort(uneven)}))
    tower = report.check("vision.01")
    assert tower is not None and tower.within_train.value > 0.9 and tower.p_shift > 0.01 and tower.shift < 0.6


def test_a_shift_of_the_features_is_found_though_the_class_is_as_readable(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((300, 60, 200), group=1)
    labelled = read_labelled_features(store)
    read = store.features

    def shifted(layer: str, pooling: str, rows: Any = None) -> Any:
        moved = np.isin(rows, labelled.rows["test"])[:, None] * (2.0 if layer == "control.border" else 0.0)
        return read(layer, pooling, rows) + moved.astype(np.float32)

    store.features = shifted
    report = shortcut_report(store, labelled)
    assert [check.layer for check in report.checks if check.shifted] == ["control.border"]
    assert not report.folds_differ and len(report.warnings) == 1 and "distinguished" in report.warnings[0]


def test_a_store_without_tower_and_regions_is_tested_by_what_it_has(make_store: Callable[..., Any]) -> None:
    store, _ = make_store()
    kept = tuple(layer for layer in store.header.layers if layer.name in ("connector", "llm.norm", "control.pixels"))
    store.header = replace(store.header, layers=kept)
    report = shortcut_report(store, read_labelled_features(store))
    assert [check.layer for check in report.checks] == ["control.pixels"] and report.warnings == ()
