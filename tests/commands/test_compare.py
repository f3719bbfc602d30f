"""``medmllm compare`` on run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmllm_plugins.cli import main
from medmllm_plugins.metrics.outcome_files import write_outcomes
from medmllm_plugins.metrics.outcomes import Outcome


def run_folder(folder: Path, right: list[int]) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"tasks": {"t": {"dataset": "d"}}}))
    answers = ["b" if hit else "a" for hit in right]
    rows = [Outcome(str(i), str(i // 2), "b", answer, "parsed") for i, answer in enumerate(answers)]
    write_outcomes(folder / "t.outcomes.jsonl", rows)
    return folder


def test_compare_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_folder(tmp_path / "a", [0, 0, 1, 0]), run_folder(tmp_path / "b", [1, 1, 1, 0])
    assert main(["compare", str(first), str(second)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["task", "n", "groups", "first", "second"]
    assert row.split()[:5] == ["t", "4", "2", "25.0%", "75.0%"]
    assert main(["compare", "--json", str(first), str(second)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["accuracy"]["value"] == 0.5 and found["n_groups"] == 2


def test_no_run_folder_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("medmllm: ") and "run folder" in said and said.count("\n") == 1


def test_runs_that_could_not_be_read_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_folder(tmp_path / "a", [0, 0, 1, 0])
    second = run_folder(tmp_path / "out" / "medmllm_runs" / "b", [1, 1, 1, 0])
    rows = [Outcome(str(i), str(i // 2), "b", None, "out_of_list") for i in range(4)]
    write_outcomes(second / "t.outcomes.jsonl", rows)
    assert main(["compare", str(first), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"Warning: t in {second}: No answer could be read (0 of 4), so the difference says little" in printed
    assert printed.count("Warning") == 1
