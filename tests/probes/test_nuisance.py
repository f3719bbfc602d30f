"""Columns of the data are probed at every layer, and one that predicts the class is warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.probes.analysis import analyse
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
    (warning,) = [text for text in result.warnings if "column" in text]
    assert warning.startswith("The column 'scanner' alone predicts the class with a balanced accuracy of ")
    points = {(point.layer, point.pooling): point for point in scanner.points}
    assert points["connector", "mean"].balanced.value > 0.6 and points["connector", "mean"].p_holm < 0.05
    assert np.isnan(points["control.pixels", "mean"].p_holm) and ("llm.norm", "last") in points
    assert set(result.shortcuts.left_out) == {"site", "age"}  # type: ignore[union-attr]
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


def test_data_without_columns_have_none(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    shortcuts = analyse(store, outcomes, OPTIONS).shortcuts
    assert shortcuts is not None and shortcuts.nuisances == () and shortcuts.left_out == {}
