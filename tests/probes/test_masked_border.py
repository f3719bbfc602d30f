"""Probes and answers with the border masked: figures by hand, and what they are warned of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.analysis_text import render
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.masked_border import masked_answers, masked_probes
from medmllm_plugins.probes.nuisance import NO_COLUMNS
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.shortcuts import shortcut_report
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.shortcut_records import MaskedCheck

OPTIONS = Options(permutations=0, controls=0, refits=0, layers=("connector",))
SIZES = (150, 60, 160)


def mask_last(count: int) -> Callable[[list[dict[str, Any]]], None]:
    """Turn the last documents of the test fold into those before them, shown once more with other features."""

    def change(records: list[dict[str, Any]]) -> None:
        for record, original in zip(records[-count:], records[-2 * count : -count], strict=True):
            record.update(original, id=f"{original['id']} | masked", fold="masked", answer="normal")

    return change


def masked_run(make_store: Callable[..., Any], **settings: Any) -> tuple[FeatureStore, list[Any]]:
    """Return a store of 80 test documents, all of them also masked, and the outcomes of the unmasked ones.

    The features of a masked document are those of another document, whose class may differ.
    """
    store, outcomes = make_store(SIZES, change=mask_last(80), group=1, **settings)
    return store, outcomes[:80]


def read(document: str, answer: str) -> str | None:
    return answer or None


def test_figures_are_those_of_the_same_probe_and_of_the_answers(make_store: Callable[..., Any]) -> None:
    store, outcomes = masked_run(make_store)
    labelled = read_labelled_features(store)
    assert len(labelled.rows["test"]) == 80  # masked documents are in no fold
    fitted = fit_probes(store, labelled, OPTIONS)
    index = fitted.index_of("connector", "mean")
    (check,) = masked_probes(store, labelled, OPTIONS, [fitted.sites[index]])
    assert check.shown.value == pytest.approx((fitted.test[index] == labelled.of("test")).mean())
    train = labelled.rows["train"]
    plain = LogisticRegression(C=float(fitted.strength[index]), max_iter=5000, tol=1e-8)
    x = store.features("connector", "mean")
    spread = x[train].std(0)
    x = x * np.minimum(1, 10 * np.median(spread) / spread)
    scale = np.sqrt(((x[train] - x[train].mean(0)) ** 2).sum(1).mean())
    plain.fit((x[train] - x[train].mean(0)) / scale, labelled.truth[train])
    masked = np.flatnonzero(store.index["fold"].astype(str) == "masked")
    predicted = plain.predict((x[masked] - x[train].mean(0)) / scale)
    assert check.masked.value == pytest.approx((predicted == labelled.truth[masked]).mean(), abs=0.026)
    assert check.drop.value == pytest.approx(check.shown.value - check.masked.value)
    assert check.drop.low < check.drop.value < check.drop.high and check.falls and (check.n, check.groups) == (80, 80)
    answers = masked_answers(store, outcomes, read)
    assert answers is not None and answers.layer == "answers" and answers.shown.value == 1.0
    labels = store.index["label"].astype(str).to_numpy()[masked]
    assert answers.masked.value == pytest.approx((labels == "normal").mean())


def test_an_analysis_has_the_ends_of_all_stages_and_the_answers(make_store: Callable[..., Any]) -> None:
    store, outcomes = masked_run(make_store)
    result = analyse(store, outcomes, OPTIONS, masked=masked_answers(store, outcomes, read))
    report = result.shortcuts
    assert report is not None and result.counts == {"train": 150, "validation": 60, "test": 80}
    assert [check.layer for check in report.masked] == ["vision.01", "connector", "llm.norm", "answers"]
    assert report.warnings == () and report.notes[0].startswith("With the border of the images masked, accuracy falls")
    text = " ".join(render(result).split())
    assert "answers 80 100.0" in text and "Note: With the border" in text
    assert ProbeAnalysis.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_a_run_without_masked_images_has_no_comparison(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    assert masked_answers(store, outcomes, read) is None
    result = analyse(store, outcomes, OPTIONS)
    assert result.shortcuts is not None and result.shortcuts.masked == () and "border masked" not in render(result)


def check_of(drop: Estimate) -> MaskedCheck:
    share = Estimate(0.9, 0.85, 0.94)
    return MaskedCheck(layer="connector", pooling="mean", n=100, groups=50, shown=share, masked=share, drop=drop)


@pytest.mark.parametrize(
    ("drop", "falls"),
    [(Estimate(0.3, 0.2, 0.4), True), (Estimate(0.3, -0.01, 0.6), False), (Estimate(0.05, 0.02, 0.08), False)],
)
def test_a_drop_is_warned_of_only_where_the_border_tells_the_class(
    make_store: Callable[..., Any], drop: Estimate, falls: bool
) -> None:
    check = check_of(drop)
    assert check.falls == falls
    for clarity, name in ((0.0, "blind"), (2.5, "telling")):
        store, _ = make_store(clear={"control.border": clarity}, name=name)
        report = shortcut_report(store, read_labelled_features(store), masked=[check], nuisances=NO_COLUMNS)
        warned = [text for text in report.warnings if "border masked" in text]
        assert len(warned) == (falls and name == "telling") and len(report.notes) == (falls and name == "blind")
        if warned:
            assert "connector 90.0% to 90.0%, by 30.0 points (95% CI 20.0 to 40.0)" in warned[0]
    assert replace(report, masked=()).masked_answers is None
