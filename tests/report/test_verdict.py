"""The verdict: its numbers are those of an independent computation, and its words follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.run_folders import Folder, outcomes
from medmllm_plugins.metrics.comparison import compare
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.gathering import gather
from medmllm_plugins.report.verdict import overview, paired, verdicts


def test_differences_agree_with_the_comparison_of_two_runs(tmp_path: Path) -> None:
    first, second = outcomes(skill=2.5, seed=3), outcomes(skill=1.0, seed=4)
    Folder(tmp_path / "reference", "baseline pixels", baseline="pixels").answers("med_cls_toy", first)
    Folder(tmp_path / "model").answers("med_cls_toy", second)
    (part,) = gather([tmp_path / "model", tmp_path / "reference"]).sets
    (found,) = verdicts(part)
    expected = compare(first, second).accuracy
    for end in ("value", "low", "high"):
        assert getattr(found.over_reference, end) == pytest.approx(getattr(expected, end), abs=1e-12)
    assert found.accuracy.value == np.mean([one.predicted == one.label for one in second])
    assert found.over_blind.value == pytest.approx(found.accuracy.value - found.blind_accuracy)
    assert "below the reference classifier baseline pixels" in found.sentence
    assert "without probes (med_probe) nothing is known of where it fails" in found.sentence


def test_only_shared_rows_are_compared(tmp_path: Path) -> None:
    Folder(tmp_path / "reference", "baseline pixels", baseline="pixels").answers("med_cls_toy", outcomes(seed=3))
    Folder(tmp_path / "model").answers("med_probe_toy", outcomes(seed=4)[:40])
    (part,) = gather([tmp_path / "model", tmp_path / "reference"]).sets
    (found,) = verdicts(part)
    assert found.shared == 40 and found.reference == "baseline pixels"


def test_a_gap_whose_interval_holds_zero_is_not_told_apart(tmp_path: Path) -> None:
    Folder(tmp_path / "model").answers("med_cls_toy", outcomes(skill=0.0, seed=11))
    (part,) = gather([tmp_path / "model"]).sets
    (found,) = verdicts(part)
    assert found.over_blind.low <= 0 <= found.over_blind.high
    assert "not told apart from always answering the commonest class" in found.sentence
    assert "no reference classifier was run" in found.sentence


def test_the_supported_mode_is_named_with_its_loss(tmp_path: Path) -> None:
    Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy", named="mapping")
    (part,) = gather([tmp_path / "model"]).sets
    (found,) = verdicts(part)
    assert [one.mode for one in found.supported] == ["mapping"] and found.named == "mapping"
    assert "supports misalignment of semantic mapping (12.0\xa0points lost" in found.sentence
    assert overview(part, [found]) == found.sentence


def test_many_models_are_summed_up(tmp_path: Path) -> None:
    for place, named in enumerate(("connector", None, "connector")):
        made = Folder(tmp_path / str(place), f"model-{place}")
        made.answers("med_probe_toy", outcomes(skill=1.0 + place, seed=place)).probes("med_probe_toy", named=named)
    (part,) = gather([tmp_path / str(place) for place in range(3)]).sets
    said = overview(part, verdicts(part))
    assert said.startswith("Of 3 models on toy, model-2 (tiny) answers most questions rightly")
    assert "of the 3 models that were probed, the evidence supports fidelity loss in connector projection in 2" in said


def test_pairing_without_shared_rows_says_nothing() -> None:
    rows = {("a", "", ""): 1.0}
    assert paired({"x": (rows, {("b", "", ""): 0.0}, {("a", "", ""): "g"})}) == {}
    ((gap, mean, count),) = paired({"x": (rows, {("a", "", ""): 0.0}, {("a", "", ""): "g"})}).values()
    assert gap.value == 1.0 and np.isnan(gap.low) and (mean, count) == (0.0, 1) and isinstance(gap, Estimate)
