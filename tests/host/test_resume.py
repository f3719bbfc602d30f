"""A run that was killed goes on: no document lost, none asked twice, the numbers those of one unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import medmllm_plugins
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.runtime.journal import Journal, Reply, hash_facts

RUNS = "medmllm_runs"


def journals(folder: Path) -> list[Path]:
    return sorted((folder / RUNS / ".unfinished").glob("*"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model was asked."""
    sizes: list[int] = []
    generate = LoadedModel.generate

    def counted(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["max_new_tokens"]:  # and not the labels' scores on a blank image
            sizes.append(len(questions))
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counted)
    return sizes


def test_a_broken_run_goes_on(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    settings = {"tasks": ["med_cls_demo", "med_cls_demo:protocol=letter"], "limit": 40, "batch_size": 8}
    whole = evaluate(tmp_path / "whole", **settings)
    assert sum(asked) == 80 and journals(tmp_path / "whole") == []
    asked.clear()

    counting = LoadedModel.generate

    def failing(self: LoadedModel, *args: Any, **kwargs: Any) -> Any:
        if len(asked) == 7:
            raise KeyboardInterrupt  # no error that anything here would catch
        return counting(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "generate", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "out", **settings)
    assert sum(asked) == 56 and len(journals(tmp_path / "out")) == 1
    (begun,) = [path for path in (tmp_path / "out" / RUNS).iterdir() if path.name != ".unfinished"]
    assert json.loads((begun / "manifest.json").read_text())["finished"] is None
    # What a process leaves of a line that it was writing when it died.
    (part,) = journals(tmp_path / "out")[0].glob("answers.*.jsonl")
    part.write_text(part.read_text() + '{"key": "0123", "te')
    asked.clear()

    again = evaluate(tmp_path / "out", **settings)
    assert sum(asked) == 80 - 56
    assert again.folder == begun.absolute() and again.manifest["finished"] and journals(tmp_path / "out") == []
    assert again.manifest["answers_of_an_earlier_start"] == 56
    for task in settings["tasks"]:
        assert again.values(task) == whole.values(task)
        stem = task.replace(":", "+")
        assert (again.folder / f"{stem}.outcomes.jsonl").read_text() == (
            whole.folder / f"{stem}.outcomes.jsonl"
        ).read_text()
    asked.clear()
    evaluate(tmp_path / "out", **settings)  # what is finished is done anew when asked for anew
    assert sum(asked) == 80


def test_other_settings_do_not_take_its_answers(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    counting = LoadedModel.generate

    def failing(self: LoadedModel, *args: Any, **kwargs: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return counting(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "generate", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "out", limit=24, batch_size=8)
    asked.clear()
    evaluate(tmp_path / "out", tasks=["med_cls_demo:paraphrase=1"], limit=24, batch_size=8)
    evaluate(tmp_path / "out", model_args="pretrained=demo,device=cpu,max_new_tokens=3", limit=24, batch_size=8)
    assert sum(asked) == 48 and len(journals(tmp_path / "out")) == 1
    asked.clear()
    evaluate(tmp_path / "out", limit=32, batch_size=4)  # more documents, other batches: the same answers
    assert sum(asked) == 32 - 16 and journals(tmp_path / "out") == []


def test_two_runs_at_once_have_a_journal_each(tmp_path: Path) -> None:
    name = hash_facts({"model": "m"})
    first = Journal(tmp_path, name, 0)
    first.add({"a": Reply("one", generated_tokens=1)})
    second = Journal(tmp_path, name, 0)
    assert second.folder != first.folder and second.known == {}
    second.remove()
    first.close()
    third = Journal(tmp_path, name, 0)
    assert third.folder == first.folder and third.known == {"a": Reply("one", generated_tokens=1)}
    other = Journal(tmp_path, name, 1)
    assert other.folder == third.folder and other.known == third.known
    third.remove()
    other.remove()
    assert not (tmp_path / ".unfinished").exists()


def test_damage_in_a_journal_costs_single_answers(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "x", 0)
    journal.add({"a": Reply("öne\n", generated_tokens=1), "b": Reply("two", generated_tokens=2)})
    journal.close()
    (path,) = journal.folder.glob("answers.*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"two"', b'"tw\xff') + b'[1]\n{"key": "c"}\n{"key": "d", "text"')
    again = Journal(tmp_path, "x", 0)
    assert again.known == {"a": Reply("öne\n", generated_tokens=1)}
    again.add({"e": Reply("five", generated_tokens=5)})
    again.close()
    assert Journal(tmp_path, "x", 1).known == {
        "a": Reply("öne\n", generated_tokens=1),
        "e": Reply("five", generated_tokens=5),
    }


def test_a_changed_answer_is_asked_again(tmp_path: Path, warned: list[str]) -> None:
    journal = Journal(tmp_path, "x", 0)
    journal.add({name: Reply(f"answer {name}", generated_tokens=7) for name in "abcdef"})
    journal.close()
    (path,) = journal.folder.glob("answers.*.jsonl")
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace("answer a", "answer b")  # another text
    lines[1] = lines[1].replace(", 7]", ", 8]")
    lines[2] = lines[2].replace('"key": "c"', '"key": "z"')  # the answer to another question
    lines[3] = json.dumps({key: value for key, value in json.loads(lines[3]).items() if key != "sum"})
    path.write_text("\n".join(lines) + '\n{"key": "g", "reply": ["tor')
    again = Journal(tmp_path, "x", 0)
    assert set(again.known) == {"e", "f"} and again.damaged == 4
    (message,) = warned
    assert "4 damaged line(s)" in message and str(again.folder) in message
    again.add({"a": Reply("answer a", generated_tokens=7)})
    again.close()
    # The torn last line is nothing to speak of, and does not spoil the line behind it.
    third = Journal(tmp_path, "x", 0)
    assert set(third.known) == {"a", "e", "f"} and third.damaged == 4


@given(st.binary(min_size=1), st.integers(0, 10**6))
def test_no_damaged_byte_gives_another_answer(noise: bytes, place: int) -> None:
    answers = {"a": Reply("öne\n", generated_tokens=1), "b": Reply("two", generated_tokens=2)}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), "x", 0)
        journal.add(answers)
        journal.close()
        path = journal.folder / "answers.0.jsonl"
        content = bytearray(path.read_bytes())
        place %= len(content)
        content[place : place + len(noise)] = noise
        path.write_bytes(bytes(content))
        again = Journal(Path(folder), "x", 0)
        again.close()
        assert again.known.items() <= answers.items()


# -- whole commands ----------------------------------------------------------------------------------------------------

SCRIPTS = Path(sysconfig.get_path("scripts"))
COMMAND = "--model medm_vl --model_args pretrained=demo,device=cpu --tasks med_cls_demo --batch_size 4 --output_path"


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDMLLM_", "PYTHONPATH"))}
    return subprocess.Popen(
        list(words),
        cwd=folder,
        # The package that is tested here, and not another that may be installed.
        env={
            **environment,
            "PYTHONPATH": str(Path(medmllm_plugins.__file__).parents[1]),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MEDMLLM_CACHE": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    return said


def metrics(folder: Path) -> dict[str, Any]:
    (path,) = (folder / RUNS).glob("*/med_cls_demo.metrics.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def outcomes(folder: Path) -> list[str]:
    (path,) = (folder / RUNS).glob("*/med_cls_demo.outcomes.jsonl")
    return path.read_text().splitlines()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    said = finish(start(folder, str(SCRIPTS / "lmms-eval"), *COMMAND.split(), "out"))
    assert (folder / "out" / RUNS).is_dir(), said
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["plain", "with the host's cache"])
def test_a_killed_command_goes_on(unbroken: Path, tmp_path: Path, cached: bool) -> None:
    words = [str(SCRIPTS / "lmms-eval"), *COMMAND.split(), "out", *(["--use_cache", "cache"] if cached else [])]
    process = start(tmp_path, *words)
    deadline = time.time() + 300
    stored = 0
    while stored < 60 and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
        stored = sum(
            path.read_text().count("\n") for path in (tmp_path / "out" / RUNS).glob(".unfinished/*/answers.*.jsonl")
        )
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert 60 <= stored < 480
    said = finish(start(tmp_path, *words))
    assert "answers are there from an earlier start" in said
    assert metrics(tmp_path / "out") == metrics(unbroken)
    assert outcomes(tmp_path / "out") == outcomes(unbroken)
    assert not (tmp_path / "out" / RUNS / ".unfinished").exists()
    assert len(list((tmp_path / "out" / RUNS).iterdir())) == 1


LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", "29531", "-m", "lmms_eval"],
    "accelerate": [
        "accelerate",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "29532",
        "-m",
        "lmms_eval",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_what_one_gives(unbroken: Path, tmp_path: Path, launcher: str) -> None:
    program, *rest = LAUNCHERS[launcher]
    words = [str(SCRIPTS / program), *rest]
    said = finish(start(tmp_path, *words, *COMMAND.split(), "out"))
    assert (tmp_path / "out" / RUNS).is_dir(), said
    assert metrics(tmp_path / "out") == metrics(unbroken)
    assert outcomes(tmp_path / "out") == outcomes(unbroken)
    (folder,) = (tmp_path / "out" / RUNS).iterdir()
    (unbroken_folder,) = (unbroken / RUNS).iterdir()
    assert {path.name for path in folder.iterdir()} == {path.name for path in unbroken_folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] and manifest["tasks"]["med_cls_demo"]["evaluated"] == 480
