"""The run folder: stages add up, the manifest is whole or the old one, and nothing is written too early."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmllm_plugins.results.manifest import ModelEntry, TaskEntry, read_manifest
from medmllm_plugins.runtime import evaluation_run
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.run_session import RunSession


class Clock:
    """A clock that only goes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(evaluation_run, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def manifest(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_nothing_is_written_before_open(everything: Callable[[], set[str]]) -> None:
    run = EvaluationRun()
    run.arguments(Namespace(output_path="out", seed=[1]))
    with run.stage("data"):
        run.task("t", counts={})
    run.model(ModelEntry(name="m"))
    run.write()
    assert everything() == set()


def test_open_writes_all_that_was_noted_before(tmp_path: Path) -> None:
    run = EvaluationRun(tmp_path / "a" / "b")
    run.arguments(Namespace(output_path="out", seed=[1, 2]))
    with run.stage("data"):
        run.task("t", counts={"test": {"benign": 3}})
    run.model(ModelEntry(name="m"))
    folder = run.folder_for("m")
    assert folder == tmp_path / "a" / "b"
    content = manifest(folder)
    counted = TaskEntry(counts={"test": {"benign": 3}})
    assert content["tasks"] == {"t": counted.to_dict()}
    assert content["model"] == ModelEntry(name="m").to_dict() and content["seed"] == [1, 2]
    assert content == json.loads(json.dumps(run.manifest.to_dict()))
    run.task("t", evaluated=3)
    run.task("u", evaluated=4)
    assert read_manifest(folder).tasks == {"t": replace(counted, evaluated=3), "u": TaskEntry(evaluated=4)}


def test_the_first_folder_stays(tmp_path: Path, everything: Callable[[], set[str]]) -> None:
    run = EvaluationRun(tmp_path / "one")
    assert run.folder_for("m") == run.folder_for("other") == tmp_path / "one"
    assert everything() == {"one", "one/manifest.json", "one/.lock"}


def test_folders_without_a_name_of_their_own(tmp_path: Path) -> None:
    below = EvaluationRun()
    below.arguments(Namespace(output_path=str(tmp_path / "out")))
    # Each task tells the arguments again; a later one without them must not undo the first.
    below.arguments(None)
    assert below.folder_for("medm_vl").parent == tmp_path / "out" / "medmllm_runs"
    here = EvaluationRun().folder_for("medm_vl")
    assert here.absolute().parent == tmp_path / "medmllm_runs" and here.name.split("-")[1] == "medm_vl"


def test_stages_of_one_name_add_up(tmp_path: Path, clock: Clock) -> None:
    run = EvaluationRun(tmp_path / "r")
    for name, seconds in (("data", 2.0), ("load", 0.5), ("data", 1.25)):
        with run.stage(name):
            clock.now += seconds
        clock.now += 10  # between stages, which is nobody's
    run.folder_for("m")
    with run.stage("answer"):
        clock.now += 4
        with run.stage("score"):
            clock.now += 0.125
    stages = run.manifest.stages
    assert {stage.name: stage.seconds for stage in stages} == {
        "data": 3.25,
        "load": 0.5,
        "answer": 4.125,
        "score": 0.125,
    }
    assert manifest(tmp_path / "r")["stages"] == [stage.to_dict() for stage in stages]


def test_a_stage_that_fails_is_counted_and_its_error_passes(tmp_path: Path, clock: Clock) -> None:
    run = EvaluationRun(tmp_path)
    run.folder_for("m")
    with pytest.raises(ZeroDivisionError), run.stage("load"):
        clock.now += 3
        raise ZeroDivisionError
    (stage,) = manifest(tmp_path)["stages"]  # type: ignore[misc]
    assert (stage["name"], stage["seconds"]) == ("load", 3.0)


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    run = EvaluationRun()
    with run.stage("small"):
        pass
    with run.stage("large"):
        held = bytearray(300_000_000)
        held[::4096] = b"1" * len(held[::4096])  # touched, else the system does not give the pages
    del held
    with run.stage("after"):
        pass
    small, large, after = (stage.process_peak_bytes for stage in run.manifest.stages)
    assert 10_000_000 < small <= large <= after
    assert large > 250_000_000
    assert all(stage.device_peak_bytes is None for stage in run.manifest.stages)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    run = EvaluationRun(tmp_path / "r")
    run.folder_for("m")
    run.task("t", prompt="?")
    before = manifest(tmp_path / "r")
    with pytest.raises(TypeError):
        run.task("t", baseline={"bad": object()})
    assert manifest(tmp_path / "r") == before
    assert everything() == {"r", "r/manifest.json", "r/.lock"}


def test_the_manifest_is_replaced_and_not_overwritten(tmp_path: Path) -> None:
    """Who has it open reads the old one to its end: another file takes its place."""
    run = EvaluationRun(tmp_path)
    run.folder_for("m")
    with (tmp_path / "manifest.json").open(encoding="utf-8") as reader:
        start = reader.read(10)
        run.task("t", prompt="x" * 100_000)
        assert json.loads(start + reader.read())["tasks"] == {}
    assert "t" in manifest(tmp_path)["tasks"]  # type: ignore[operator]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_a_full_disk_leaves_the_old_manifest_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = EvaluationRun(tmp_path)
    run.folder_for("m")
    before = manifest(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            run.task("t", prompt="?")
    assert manifest(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    run = EvaluationRun(tmp_path)
    run.folder_for("m")
    run.task("t", prompt="Läsion → 良性")
    assert "Läsion → 良性".encode() in (tmp_path / "manifest.json").read_bytes()


def test_a_session_starts_another_run_once_the_first_has_answers(tmp_path: Path) -> None:
    session = RunSession()
    first = session.join("t")
    first.run_dir = tmp_path / "first"
    assert session.join("u") is first
    first.folder_for("m")
    first.task("t", evaluated=1)
    second = session.join("t")
    second.run_dir = tmp_path / "second"
    assert second is session.run is not first
    assert second.folder is None and second.output_path is None
    assert second.manifest.tasks == {} and second.manifest.stages == ()
    second.folder_for("m")
    assert "t" in manifest(tmp_path / "first")["tasks"]  # type: ignore[operator]
    assert manifest(tmp_path / "second")["tasks"] == {}
