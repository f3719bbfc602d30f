"""``medmllm compare`` on run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmllm_plugins.cli.app import main
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.metric_files import write_metrics
from medmllm_plugins.results.outcome_files import write_outcomes
from medmllm_plugins.results.seal import write_seal


def run_folder(folder: Path, right: list[int], rows: list[Outcome] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"finished": "2026", "tasks": {"t": {"settings": {"dataset": "d"}, "labels": ["a", "b"]}}})
    )
    answers = ["b" if hit else "a" for hit in right]
    rows = rows or [Outcome(str(i), str(i // 2), "b", answer, "parsed") for i, answer in enumerate(answers)]
    write_outcomes(folder / "t.outcomes.jsonl", rows)
    write_metrics(folder, "t", summarise(rows, ["a", "b"], None, resamples=20))
    write_seal(folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return run_folder(tmp_path / "a", [0, 0, 1, 0]), run_folder(tmp_path / "b", [1, 1, 1, 0])


@pytest.mark.parametrize("name", ["t.outcomes.jsonl", "manifest.json"])
@pytest.mark.parametrize("removed", [True, False])
def test_edited_files_are_refused_by_name(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], name: str, removed: bool
) -> None:
    path = runs[1] / name
    path.write_text(path.read_text().replace('"a"', '"b"').replace("2026", "2027"))
    if removed:
        path.unlink()
    assert main(["compare", *map(str, runs)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and name in err and str(runs[1]) in err
    assert "sealed" in err or name == "manifest.json"


@pytest.mark.parametrize("sealed", [True, False])
def test_an_edited_accuracy_is_never_printed(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], sealed: bool
) -> None:
    path = runs[1] / "t.metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["accuracy"]["value"] = 0.99
    path.write_text(json.dumps(content))
    if not sealed:
        (runs[1] / "seal.json").unlink()
    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[4].split()[:5] == ["t", "4", "2", "25.0%", "75.0%"]
    assert "metrics.accuracy.value is 0.99, the answers give 0.75" in out
    assert ("differ from the seal" in out) == sealed and ("cannot be checked" in out) != sealed


def test_an_unfinished_run_is_named(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "seal.json").unlink()
    manifest = json.loads((runs[0] / "manifest.json").read_text())
    (runs[0] / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    assert main(["compare", *map(str, runs)]) == 0
    assert "the run is not finished" in capsys.readouterr().out


def test_compare_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_folder(tmp_path / "a", [0, 0, 1, 0]), run_folder(tmp_path / "b", [1, 1, 1, 0])
    assert main(["compare", str(first), str(second)]) == 0
    *named, gap, head, row, _, note = capsys.readouterr().out.splitlines()
    assert named == [f"first   a: {first}", f"second  b: {second}"] and gap == ""
    assert head.split()[:5] == ["task", "n", "groups", "first", "second"]
    assert row.split()[:7] == ["t", "4", "2", "25.0%", "75.0%", "+50.0", "points"] and row.count("%") == 2
    assert note == "The difference is second minus first, in percentage points."
    assert main(["compare", "--json", str(first), str(second)]) == 0
    content = json.loads(capsys.readouterr().out)
    (comparison,) = content["comparisons"]
    assert content["first"] == {"label": "a", "folder": str(first)} and content["second"]["label"] == "b"
    assert comparison["accuracy"]["value"] == 0.5 and comparison["n_groups"] == 2


def test_a_run_is_named_by_its_model_and_what_changed_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_folder(tmp_path / "a", [0, 0, 1, 0]), run_folder(tmp_path / "b", [1, 1, 1, 0])
    for folder, model in (
        (first, {"name": "medm_vl", "pretrained": "owner/medm-vl-2d"}),
        (second, {"name": "medm_vl", "pretrained": "owner/medm-vl-2d", "repair": "out/repairs/affine"}),
    ):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"medmllm_manifest": 1, "model": model}))
        write_seal(folder)
    assert main(["compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"first   medm_vl (medm-vl-2d): {first}"
    assert lines[1] == f"second  medm_vl (medm-vl-2d), repair affine: {second}"


def test_no_run_folder_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("medmllm: ") and "run folder" in said and said.count("\n") == 1


def test_ctrl_c_is_one_line_and_130(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medmllm_plugins.cli.compare.compare_runs", interrupted)
    assert main(["compare", *map(str, runs)]) == 130
    assert capsys.readouterr().err.splitlines() == [
        "medmllm: interrupted. Start the same command again; no file is left half-written."
    ]


def test_runs_that_could_not_be_read_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_folder(tmp_path / "a", [0, 0, 1, 0])
    rows = [Outcome(str(i), str(i // 2), "b", None, "out_of_list") for i in range(4)]
    second = run_folder(tmp_path / "out" / "medmllm_runs" / "b", [1, 1, 1, 0], rows)
    assert main(["compare", str(first), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"Warning: t in {second}: No answer could be read (0 of 4), so the difference says little" in printed
    assert printed.count("Warning") == 1
