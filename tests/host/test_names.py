"""Wrong task names and missing data, met through the host: what was meant, and everything that is missing at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import task_index

Index = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def index() -> Index:
    filled: Index = {}
    task_index.add_tasks(filled)
    return filled


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("med_cls_bussi", "med_cls_busi"),
        ("busi", "med_cls_busi"),
        ("MED_CLS_BUSI", "med_cls_busi"),
        ("med_prob_demo", "med_probe_demo"),
        ("med_cls_covid19", "med_cls_covid19_ct"),
        ("med_cls_bussi:order=varied", "med_cls_busi"),
    ],
)
def test_a_wrong_name_is_asked_about_with_a_handful(index: Index, wrong: str, meant: str) -> None:
    hint = task_index.hint(index, wrong)
    assert f"Did you mean {meant}" in hint
    assert len(hint) < 300 and hint.count("med_") <= 6


def test_what_is_like_nothing_is_not_guessed(index: Index) -> None:
    assert task_index.hint(index, "gsm8k_of_mine") == ""
    assert task_index.hint(index, "x" * 100_000) == ""


def test_the_host_is_told_too(task_manager: Any) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="ERROR")
    try:
        assert task_manager.match_tasks(["med_cls_bussi", "med_cls_demo", "med_cls_dem*"]) != []
    finally:
        logger.remove(sink)
    assert len(lines) == 1 and "There is no task 'med_cls_bussi'. Did you mean med_cls_busi" in lines[0]


@pytest.mark.parametrize("variable", [None, "nowhere"])
def test_all_missing_sets_of_a_group_are_named(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path / variable))
    with pytest.raises(DataError, match="3 data sets are missing") as caught:
        task_index.check_data(index, ["med_cls"])
    for word in ("busi", "covid19_ct", "chest_xray", "Get the set from", "MEDMLLM_DATA", "--tasks med_cls_demo"):
        assert word in str(caught.value)


def test_what_is_there_is_offered(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("busi", "chest_xray"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    with pytest.raises(DataError, match="1 data set is missing") as caught:
        task_index.check_data(index, ["med_cls"])
    assert "covid19_ct" in str(caught.value)
    assert "Or evaluate what is there: --tasks med_cls_busi,med_cls_chest_xray" in str(caught.value)
    (tmp_path / "covid19_ct").mkdir()
    task_index.check_data(index, ["med_cls"])


def test_one_task_alone_and_what_is_not_ours_is_left_to_its_loading(index: Index) -> None:
    task_index.check_data(index, ["med_cls_busi"])
    task_index.check_data(index, ["med_cls_demo", "mmmu_val", "med_cls_demo:order=varied"])
    circle: Index = {"a": {"type": "group", "yaml_path": "/nowhere.yaml", "task": -1}}
    task_index.check_data(circle, ["a", "a"])
