"""Run folders below an output folder: the one there is, or the question which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.results.run_folders import describe_run, one_run, run_folders, run_label


def write_run(folder: Path, started: str = "2026-01-01T10:00:00+00:00", model: object = "medm_vl demo") -> Path:
    folder.mkdir(parents=True)
    facts = {"started": started, "finished": started, "model": {"name": model}, "tasks": {"med_cls_demo": {}}}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def test_a_run_folder_means_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_run(run / "medmllm_runs" / "inner")
    assert run_folders(run) == [run] and one_run(run) == run


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        ({"model": {"name": "lingshu", "pretrained": "hub/7b", "repair": "out/affine"}}, "lingshu (7b), repair affine"),
        ({"model": None, "command": {"model": "dummy"}}, "dummy"),
        ({"model": None, "command": None}, "run"),
    ],
)
def test_a_run_is_named_by_its_model(tmp_path: Path, facts: dict[str, object], label: str) -> None:
    path = write_run(tmp_path / "run") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    assert run_label(tmp_path / "run") == label


@pytest.mark.parametrize("place", ["out", "out/medmllm_runs"])
def test_the_one_run_inside_is_meant(tmp_path: Path, place: str) -> None:
    run = write_run(tmp_path / "out" / "medmllm_runs" / "r")
    write_run(tmp_path / "out" / "medmllm_runs" / ".unfinished")
    (tmp_path / "out" / "host_files").mkdir()
    assert one_run(tmp_path / place) == run


def test_runs_are_found_some_levels_below_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "b" / "medmllm_runs" / "r")
    other = write_run(tmp_path / "a" / "plain folder")
    write_run(tmp_path / "a" / "b" / "c" / "d" / "e" / "too deep")
    write_run(run / "features" / "inner")
    app = tmp_path / "a" / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "of another program", "icons": []}')
    assert run_folders(tmp_path) == [other, run]


def test_of_several_runs_it_is_asked_which(tmp_path: Path) -> None:
    runs = tmp_path / "out" / "medmllm_runs"
    new = write_run(runs / "a", "2026-03-01T10:00:00+00:00", "lingshu")
    old = write_run(runs / "b", "2026-02-01T10:00:00+00:00", "x" * 9000)
    assert run_folders(tmp_path / "out") == [old, new]
    with pytest.raises(OptionError, match="expected one run, got 2") as caught:
        one_run(tmp_path / "out")
    first, second = str(caught.value).splitlines()[1:]
    assert first == f"  {new}  (2026-03-01 10:00, lingshu, med_cls_demo)"
    assert second.startswith(f"  {old}  (2026-02-01 10:00, xxx") and len(second) < 400
    (old / "features").mkdir()
    assert one_run(tmp_path / "out", holding="features") == old
    for index in range(20):
        write_run(runs / f"more {index}")
    with pytest.raises(OptionError, match="and 12 older"):
        one_run(tmp_path / "out")


def test_what_is_no_folder_of_runs(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == [tmp_path] and one_run(tmp_path) == tmp_path
    with pytest.raises(DataError, match="nothing of that name"):
        one_run(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="got a file"):
        one_run(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"tasks": 3, "model": []}', "\xff"])
def test_damaged_manifests_are_listed_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "manifest.json").write_text(text, encoding="latin-1")
    assert describe_run(tmp_path / "r") == "no date, not finished"
    assert one_run(tmp_path) == tmp_path / "r"
