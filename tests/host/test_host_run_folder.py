"""The run folder: stages add up, the manifest is whole or the old one, and nothing is written too early."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmllm_plugins.host import evaluation_run
from medmllm_plugins.host.evaluation_run import Run


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


@pytest.fixture(autouse=True)
def no_run() -> Iterator[None]:
    evaluation_run._current = None
    yield
    evaluation_run._current = None


def manifest(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def test_nothing_is_written_before_open(everything: Callable[[], set[str]]) -> None:
    progress = Run()
    progress.arguments(Namespace(output_path="out", seed=[1]))
    with progress.stage("data"):
        progress.task("t", {"counts": {}})
    progress.model({"name": "m"})
    progress.write()
    assert everything() == set()


def test_open_writes_all_that_was_noted_before(tmp_path: Path) -> None:
    progress = Run(tmp_path / "a" / "b")
    progress.arguments(Namespace(output_path="out", seed=[1, 2]))
    with progress.stage("data"):
        progress.task("t", {"counts": {"test": {"benign": 3}}})
    progress.model({"name": "m"})
    folder = progress.folder_for("m")
    assert folder == tmp_path / "a" / "b"
    found = manifest(folder)
    assert found["tasks"] == {"t": {"counts": {"test": {"benign": 3}}}}
    assert found["model"] == {"name": "m"} and found["seed"] == [1, 2]
    assert found == json.loads(json.dumps(progress.manifest))
    progress.task("t", {"evaluated": 3})
    progress.task("u", {"evaluated": 4})
    tasks = {"t": {"counts": {"test": {"benign": 3}}, "evaluated": 3}, "u": {"evaluated": 4}}
    assert manifest(folder)["tasks"] == tasks


def test_the_first_folder_stays(tmp_path: Path, everything: Callable[[], set[str]]) -> None:
    progress = Run(tmp_path / "one")
    assert progress.folder_for("m") == progress.folder_for("other") == tmp_path / "one"
    assert everything() == {"one", "one/manifest.json", "one/.lock"}


def test_folders_without_a_name_of_their_own(tmp_path: Path) -> None:
    below = Run()
    below.arguments(Namespace(output_path=str(tmp_path / "out")))
    # Each task tells the arguments again; a later one without them must not undo the first.
    below.arguments(None)
    assert below.folder_for("medm_vl").parent == tmp_path / "out" / "medmllm_runs"
    here = Run().folder_for("medm_vl")
    assert here.absolute().parent == tmp_path / "medmllm_runs" and here.name.split("-")[1] == "medm_vl"


def test_stages_of_one_name_add_up(tmp_path: Path, clock: Clock) -> None:
    progress = Run(tmp_path / "r")
    for name, seconds in (("data", 2.0), ("load", 0.5), ("data", 1.25)):
        with progress.stage(name):
            clock.now += seconds
        clock.now += 10  # between stages, which is nobody's
    progress.folder_for("m")
    with progress.stage("answer"):
        clock.now += 4
        with progress.stage("score"):
            clock.now += 0.125
    stages = progress.manifest["stages"]
    assert {stage["name"]: stage["seconds"] for stage in stages} == {
        "data": 3.25,
        "load": 0.5,
        "answer": 4.125,
        "score": 0.125,
    }
    assert manifest(tmp_path / "r")["stages"] == stages


def test_a_stage_that_fails_is_counted_and_its_error_passes(tmp_path: Path, clock: Clock) -> None:
    progress = Run(tmp_path)
    progress.folder_for("m")
    with pytest.raises(ZeroDivisionError), progress.stage("load"):
        clock.now += 3
        raise ZeroDivisionError
    (stage,) = manifest(tmp_path)["stages"]  # type: ignore[misc]
    assert (stage["name"], stage["seconds"]) == ("load", 3.0)


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    progress = Run()
    with progress.stage("small"):
        pass
    with progress.stage("large"):
        held = bytearray(300_000_000)
        held[::4096] = b"1" * len(held[::4096])  # touched, else the system does not give the pages
    del held
    with progress.stage("after"):
        pass
    small, large, after = (stage["process_peak_bytes"] for stage in progress.manifest["stages"])
    assert 10_000_000 < small <= large <= after
    assert large > 250_000_000
    assert all(stage["device_peak_bytes"] is None for stage in progress.manifest["stages"])


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    progress = Run(tmp_path / "r")
    progress.folder_for("m")
    progress.task("t", {"good": 1})
    before = manifest(tmp_path / "r")
    with pytest.raises(TypeError):
        progress.task("t", {"bad": object()})
    assert manifest(tmp_path / "r") == before
    assert everything() == {"r", "r/manifest.json", "r/.lock"}


def test_the_manifest_is_replaced_and_not_overwritten(tmp_path: Path) -> None:
    """Who has it open reads the old one to its end: another file takes its place."""
    progress = Run(tmp_path)
    progress.folder_for("m")
    with (tmp_path / "manifest.json").open(encoding="utf-8") as reader:
        start = reader.read(10)
        progress.task("t", {"long": "x" * 100_000})
        assert json.loads(start + reader.read())["tasks"] == {}
    assert "t" in manifest(tmp_path)["tasks"]  # type: ignore[operator]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_a_full_disk_leaves_the_old_manifest_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Run(tmp_path)
    progress.folder_for("m")
    before = manifest(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            progress.task("t", {"more": 1})
    assert manifest(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    progress = Run(tmp_path)
    progress.folder_for("m")
    progress.task("t", {"prompt": "Läsion → 良性"})
    assert "Läsion → 良性".encode() in (tmp_path / "manifest.json").read_bytes()


def test_start_begins_a_new_run(tmp_path: Path) -> None:
    first = evaluation_run.start(tmp_path / "first")
    assert evaluation_run.current() is first
    first.folder_for("m")
    with first.stage("data"):
        first.task("t", {"evaluated": 1})
    second = evaluation_run.start(tmp_path / "second")
    assert second is evaluation_run.current() is not first
    assert second.folder is None and second.output_path is None
    assert second.manifest["tasks"] == {} and second.manifest["stages"] == []
    second.folder_for("m")
    assert "t" in manifest(tmp_path / "first")["tasks"]  # type: ignore[operator]
    assert manifest(tmp_path / "second")["tasks"] == {}
