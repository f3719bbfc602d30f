"""One folder, one run: results are never replaced without a word, and no two processes share a folder."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.manifest import ModelEntry, SettingsEntry
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.results.seal import check_seal
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.utils.locking import FolderLock

SUMMARY = summarise([Outcome("1", "g", "a", "a", "parsed")], ["a", "b"], None, resamples=1)

_open_runs: list[EvaluationRun] = []


@pytest.fixture(autouse=True)
def one_run_at_a_time() -> Iterator[None]:
    """Close what a test leaves open, as the end of its process would."""
    yield
    close_runs()


def close_runs() -> None:
    while _open_runs:
        _open_runs.pop().close()


def new_run(folder: Path | None) -> EvaluationRun:
    """Begin a run, as the next evaluation in the process does."""
    close_runs()
    _open_runs.append(EvaluationRun(folder))
    return _open_runs[-1]


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(str(message)), level="WARNING", format="{message}")
    yield messages
    logger.remove(sink)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return content


def begun(folder: Path | None, task: str, model: str = "m", **command: Any) -> EvaluationRun:
    """A run that has begun to answer."""
    run = new_run(folder)
    run.arguments(Namespace(output_path=None, seed=[1], tasks=task, **command))
    run.task(task, settings=SettingsEntry(dataset="toy"), dataset_fingerprint="f")
    run.model(ModelEntry(name=model, fingerprint=model))
    run.open(model, {"model": model, "command": command})
    return run


def finished(folder: Path, task: str, model: str = "m", **command: Any) -> Path:
    run = begun(folder, task, model, **command)
    assert run.folder is not None
    (run.folder / f"{task}.metrics.json").write_text(json.dumps({"of": model}))
    run.scored(task, SUMMARY)
    return run.folder


def test_another_task_of_the_same_model_joins_and_keeps_what_was_there(tmp_path: Path, warnings: list[str]) -> None:
    folder = finished(tmp_path / "r", "t", limit=5)
    first = manifest(folder)
    (folder / "t.metrics.json").write_text("edited meanwhile")
    assert finished(tmp_path / "r", "u", limit=5) == folder and finished(tmp_path / "r", "v", limit=5) == folder
    content = manifest(folder)
    assert (
        list(content["tasks"]) == ["t", "u", "v"]
        and content["tasks"]["t"] == first["tasks"]["t"]
        and content["finished"]
    )
    assert [evaluation["tasks"] for evaluation in content["evaluations"]] == [["t"], ["u"]]
    assert content["evaluations"][0]["finished"] == first["finished"]
    assert list(check_seal(folder).differing) == ["t.metrics.json"] and not warnings
    assert sorted(path.name for path in folder.glob(".*")) == []


@pytest.mark.parametrize(
    ("task", "model", "command", "reason"),
    [
        ("t", "m", {"limit": 5}, "holds results of t already"),
        ("u", "other", {"limit": 5}, "results of t by another model or with other arguments"),
        ("u", "m", {"limit": 6}, "results of t by another model or with other arguments"),
    ],
)
def test_results_that_would_be_lost_send_a_run_to_the_next_number(
    tmp_path: Path, warnings: list[str], task: str, model: str, command: dict[str, Any], reason: str
) -> None:
    folder = finished(tmp_path / "r", "t", limit=5)
    before = manifest(folder)
    (tmp_path / "r-2").mkdir()
    (tmp_path / "r-2" / "manifest.json").write_text("{ not json")
    assert finished(tmp_path / "r", task, model, **command) == tmp_path / "r-3"
    assert manifest(folder) == before and not check_seal(folder).differing
    (message,) = warnings
    assert reason in message and str(tmp_path / "r-3") in message
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "seal.json", "t.metrics.json"]


def test_a_folder_in_use_is_left_alone(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "r").mkdir()
    other = FolderLock(tmp_path / "r")  # as another process would hold it
    assert other.acquire()
    assert begun(tmp_path / "r", "t").folder == tmp_path / "r-2"
    assert "in use by another process" in warnings[0] and not (tmp_path / "r" / "manifest.json").exists()
    other.release()


def test_an_unfinished_run_keeps_its_folder_and_finds_it_again(tmp_path: Path) -> None:
    stopped = begun(tmp_path / "r", "t")
    stopped.open("m", {}).add({"a": Reply("yes")})
    assert begun(tmp_path / "r", "u", "other").folder == tmp_path / "r-2"
    assert begun(tmp_path / "r", "u", "other").folder == tmp_path / "r-2"  # without an answer, and yet its own
    assert begun(tmp_path / "r", "t").folder == (tmp_path / "r").absolute()
    assert "t" in manifest(tmp_path / "r")["tasks"]


def test_a_numbered_folder_of_an_unfinished_run_is_left_to_it(tmp_path: Path, warnings: list[str]) -> None:
    finished(tmp_path / "r", "t")
    stopped = begun(tmp_path / "r", "t", "other")
    stopped.open("other", {}).add({"a": Reply("yes")})
    assert stopped.folder == tmp_path / "r-2"
    assert finished(tmp_path / "r", "t", "third") == tmp_path / "r-3"
    assert begun(tmp_path / "r", "t", "other").folder == tmp_path / "r-2"
    assert manifest(tmp_path / "r-3")["model"]["name"] == "third"


def test_two_runs_in_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        run = begun(None, "t")
        run.scored("t", SUMMARY)
        folders.append(run.folder)
    assert len(set(folders)) == 3


def test_a_folder_says_unfinished_until_it_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "r", "t")
    assert run.folder is not None
    assert "not finished" in load_run(run.folder).warnings[0]
    run.scored("t", SUMMARY)
    assert load_run(run.folder).warnings == ()
    run.task("t", prompt="later")  # keeps its seal
    assert manifest(run.folder)["tasks"]["t"]["prompt"] == "later" and load_run(run.folder).warnings == ()
    (run.folder / "seal.json").unlink()
    assert "cannot be checked: expected seal.json" in load_run(run.folder).warnings[0]


SECRETS = ("q7Secret1", "q7Secret2", "q7Secret3", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl")


def test_no_secret_of_a_command_reaches_a_file(tmp_path: Path) -> None:
    arguments = (
        f"pretrained=x,api_key={SECRETS[0]},base_url=https://joe:{SECRETS[1]}@host/v1,extra={SECRETS[3]},revision=abc"
    )
    command = {"model_args": arguments, "gen_kwargs": {"headers": {"Authorization": f"Bearer {SECRETS[2]}"}}}
    folder = finished(tmp_path / "r", "t", **command)
    content = manifest(folder)
    assert content["command"]["model_args"] == "pretrained=x,api_key=…,base_url=https://…@host/v1,extra=…,revision=abc"
    # The same command finds its folder again, and joins it with another task.
    begun(tmp_path / "r", "u", **command).open("m", {}).add({"a": Reply("yes")})
    assert begun(tmp_path / "r", "u", **command).folder == folder.absolute()
    for path in tmp_path.rglob("*"):
        text = path.read_text("utf-8") if path.is_file() else ""
        assert not any(secret in text or secret in str(path) for secret in SECRETS), path
    assert (folder / "manifest.json").stat().st_mode & 0o777 == 0o600


def test_answers_to_foreign_tasks_finish_a_run_too(tmp_path: Path) -> None:
    """Their scores are in the host's own files; ours holds no more than the manifest."""
    run = new_run(tmp_path / "r")
    run.model(ModelEntry(name="m"))
    run.open("m", {"model": "m"})
    run.task("mmmu", prompt="?")
    run.answered()
    assert load_run(tmp_path / "r").warnings == () and manifest(tmp_path / "r")["finished"]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["manifest.json", "seal.json"]
