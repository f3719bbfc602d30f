"""Models beside the ones that they were tuned from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.results.comparison import compare
from medmllm_plugins.results.patch_files import write_patching
from medmllm_plugins.results.patch_records import ModuleShare, TwinPatching

TASK = "med_cls_toy"


def patching(better: str) -> TwinPatching:
    worse = "twin" if better == "model" else "model"
    share = Estimate(0.06, 0.01, 0.11)
    return TwinPatching(
        task=TASK,
        worse=worse,
        better=better,
        n=40,
        groups=20,
        worse_accuracy=Estimate(0.5, 0.4, 0.6),
        better_accuracy=Estimate(0.6, 0.5, 0.7),
        difference=Estimate(0.1, 0.02, 0.18),
        shares=(ModuleShare(module="connector", accuracy=share, log_odds=share),),
    )


def rows_of(*made: Folder) -> list[dict[str, object]]:
    (part,) = collect_runs([item.folder for item in made]).datasets
    rows: list[dict[str, object]] = build_section(part).tables["bases"].record().to_dict()["rows"]
    return rows


@pytest.mark.parametrize("skill", [0.4, 2.5])
def test_a_medical_model_is_compared_with_its_general_one(tmp_path: Path, skill: float) -> None:
    """The declaration states the base; tuning may have gained or lost."""
    tuned, general = outcomes(skill=skill, seed=1), outcomes(skill=1.2, seed=2)
    medical = Folder(tmp_path / "a", "lingshu", pretrained="7b").answers(TASK, tuned)
    base = Folder(tmp_path / "b", "medmllm_hf", pretrained="/models/Qwen2.5-VL-7B-Instruct").answers(TASK, general)
    other = Folder(tmp_path / "c", "medmllm_hf", pretrained="/models/other", fingerprint="x").answers(TASK, outcomes())
    (row,) = rows_of(medical, base, other)
    expected = compare(general, tuned)
    assert row["model"] == "lingshu (7b)" and row["base"] == "medmllm_hf (Qwen2.5-VL-7B-Instruct)"
    assert row["gain"] == pytest.approx(expected.accuracy.to_dict()) and row["n"] == expected.n
    assert (row["base_accuracy"], row["accuracy"]) == pytest.approx((expected.first, expected.second))
    assert (row["broken"], row["fixed"]) == expected.discordant and row["share_llm"] is None
    assert rows_of(medical, other) == [] == rows_of(base)


@pytest.mark.parametrize("better", ["model", "twin"])
def test_patching_gives_shares_of_the_gain(tmp_path: Path, better: str) -> None:
    made = Folder(tmp_path / "a", "medm_vl", pretrained="/x/tuned", twin="/x/base").answers(TASK, outcomes(seed=1))
    write_patching(made.folder, TASK, patching(better), [])
    (row,) = rows_of(made)
    sign = 1 if better == "model" else -1
    assert row["base"] == "/x/base" and row["n"] == 40 and row["fixed"] is None
    assert row["gain"]["value"] == sign * 0.1 and row["share_connector"]["value"] == sign * 0.06  # type: ignore[index]
    assert row["accuracy"] - row["base_accuracy"] == pytest.approx(sign * 0.1)  # type: ignore[operator]
    # With an evaluation of the base, figures are those of all documents.
    base = Folder(tmp_path / "b", "medm_vl", pretrained="/y/base", fingerprint="b").answers(TASK, outcomes(seed=2))
    (row,) = rows_of(made, base)
    assert row["n"] == 120 and row["share_connector"]["value"] == sign * 0.06  # type: ignore[index]


def test_a_repaired_model_is_compared_with_the_one_without(tmp_path: Path) -> None:
    model = {"pretrained": "/x/m", "fingerprint": "m"}
    before = Folder(tmp_path / "a", "medm_vl", **model).answers(TASK, outcomes(skill=0.5, seed=1))
    after = Folder(tmp_path / "b", "medm_vl", **model, repair="r/affine", twin="/x/m").answers(TASK, outcomes(seed=2))
    (row,) = rows_of(before, after)
    assert (row["model"], row["base"]) == ("medm_vl (m), repair affine", "medm_vl (m)")
