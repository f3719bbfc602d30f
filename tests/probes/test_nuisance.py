"""Columns of the data are probed at every layer, and one that predicts the class is warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.analysis_text import render
from medmllm_plugins.probes.nuisance import encode_column
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.shortcut_records import Nuisance

OPTIONS = Options(permutations=0, controls=0, layers=("connector",))
CLASSES = ("benign", "malignant", "normal")


def with_columns(agreement: float, seed: int = 0) -> Callable[[list[dict[str, Any]]], None]:
    """Give each group a scanner, which tells the class with a probability, and columns that cannot be tested."""

    def change(records: list[dict[str, Any]]) -> None:
        generator = np.random.default_rng(seed)
        scanners: dict[str, str] = {}
        for number, record in enumerate(records):
            told = CLASSES.index(record["label"]) if generator.random() < agreement else int(generator.integers(3))
            scanner = scanners.setdefault(record["group"], f"scanner {told}")
            columns = {"scanner": scanner, "site": "one", "age": str(number), "sex": "fm"[number // 2 % 2]}
            record["attributes"] = json.dumps(columns)

    return change


def column(analysis: ProbeAnalysis, name: str) -> Nuisance:
    assert analysis.shortcuts is not None
    return next(nuisance for nuisance in analysis.shortcuts.nuisances if nuisance.column == name)


def test_a_scanner_that_tells_the_class_is_warned_of(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 90, 150), change=with_columns(0.9))
    result = analyse(store, outcomes, OPTIONS)
    scanner, sex = column(result, "scanner"), column(result, "sex")
    assert scanner.explains_class and scanner.class_from_column.value > 0.8 and scanner.p < 0.01
    assert not sex.explains_class and sex.class_from_column.low < 1 / 3 < sex.class_from_column.high + 0.1
    warning, together = [text for text in result.warnings if "column" in text]
    assert warning.startswith("The column 'scanner' alone predicts the class with a balanced accuracy of ")
    assert together.startswith(
        "Together, the columns 'scanner', 'age', 'sex' predict the class with a balanced accuracy"
    )
    age = column(result, "age")
    assert age.counts == {} and age.points == () and np.isnan(age.chance) and not age.explains_class
    points = {(point.layer, point.pooling): point for point in scanner.points}
    assert points["connector", "mean"].balanced.value > 0.6 and points["connector", "mean"].p_holm < 0.05
    assert np.isnan(points["control.pixels", "mean"].p_holm) and ("llm.norm", "last") in points
    assert set(result.shortcuts.left_out) == {"site"}  # type: ignore[union-attr]
    assert ProbeAnalysis.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_strata_compare_the_probe_with_the_most_common_class_of_each_value(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 90, 150), change=with_columns(0.9))
    result = analyse(store, outcomes, OPTIONS)
    scanner = column(result, "scanner")
    test = store.index[store.index["fold"].astype(str) == "test"]
    values = [json.loads(text)["scanner"] for text in test["attributes"]]
    assert [(stratum.value, stratum.n) for stratum in scanner.strata] == [
        (value, values.count(value)) for value in sorted(set(values))
    ]
    sizes = np.array([stratum.n for stratum in scanner.strata])
    gains = [stratum.probe - stratum.majority for stratum in scanner.strata]
    assert scanner.within.value == pytest.approx((sizes * gains).sum() / sizes.sum())
    first = scanner.strata[0]
    labels = test["label"].astype(str).to_numpy()[np.array(values) == first.value]
    assert first.majority == pytest.approx((labels == "benign").mean())


def test_a_column_without_meaning_raises_no_alarm(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 90, 150), change=with_columns(0.0))
    result = analyse(store, outcomes, OPTIONS)
    assert not column(result, "scanner").explains_class
    assert not any("column" in warning for warning in result.warnings)


def test_columns_that_tell_the_class_only_together_are_warned_of(make_store: Callable[..., Any]) -> None:
    """Neither of two columns tells one class from the two others; both do. A number and empty cells take part."""

    def change(records: list[dict[str, Any]]) -> None:
        for number, record in enumerate(records):
            truth, free = CLASSES.index(record["label"]), (number // 2) % 2
            age = f"{number % 7 + 20 * (truth == 1) + 20 + number / 1000:.3f}"
            columns = {"site": "ab"[truth == 0], "age": "" if number % 9 == 0 else age, "free": "xy"[free]}
            record["attributes"] = json.dumps(columns)

    store, outcomes = make_store((300, 90, 150), change=change)
    report = analyse(store, outcomes, OPTIONS).shortcuts
    assert report is not None and report.columns_together is not None
    together, single = report.columns_together, {entry.column: entry for entry in report.nuisances}
    assert together.explains_class and together.columns == ("site", "age", "free")
    assert together.class_from_columns.value > 0.85
    assert all(entry.class_from_column.value < 0.75 for entry in single.values())
    assert single["age"].explains_class and not single["free"].explains_class
    table = [line.split() for line in render(analyse(store, outcomes, OPTIONS)).splitlines()]
    assert ["all", "together", "-", f"{100 * together.class_from_columns.value:.1f}"] in [line[:4] for line in table]


def test_columns_are_encoded_like_an_analyst_would() -> None:
    group = np.arange(60)
    numbers = np.array([f"{number / 2}" if number % 6 else "" for number in range(60)])
    features = encode_column(numbers, group)
    known = np.array([number / 2 for number in range(60) if number % 6])
    assert features is not None and features.shape == (60, 2)
    assert features[1, 0] == 0.5 and features[0, 0] == pytest.approx(known.mean()) and features[:, 1].sum() == 10
    words = np.array(["x"] * 30 + ["y"] * 26 + ["rare"] * 4)
    indicators = encode_column(words, group)
    assert indicators is not None and indicators.sum(0).tolist() == [30, 26]
    assert encode_column(np.array(["x"] * 60), group) is None  # constant
    assert encode_column(np.array([f"patient {number}" for number in range(60)]), group) is None
    assert encode_column(words, np.zeros(60, dtype=np.intp)) is None  # a single group


def test_data_without_columns_have_none(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    shortcuts = analyse(store, outcomes, OPTIONS).shortcuts
    assert shortcuts is not None and shortcuts.nuisances == () and shortcuts.left_out == {}
