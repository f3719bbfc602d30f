"""Ctrl-C and SIGTERM: one line, the usual exit code, and the handlers of before."""

from __future__ import annotations

import signal
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from medmllm_plugins.host import command_line
from medmllm_plugins.host.task_loading import new_session
from medmllm_plugins.results.manifest import SettingsEntry
from medmllm_plugins.runtime import signals
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.signals import Handlers, Interrupted, Terminated
from medmllm_plugins.utils.locking import FolderLock

KINDS = {signal.SIGINT: (Interrupted, 130), signal.SIGTERM: (Terminated, 143)}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in KINDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", KINDS)
def test_one_line_and_the_exit_code(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    handlers = Handlers(lambda: "how to continue")
    handlers.install()
    kind, code = KINDS[number]
    with pytest.raises(kind) as raised:
        signal.raise_signal(number)
    assert raised.value.code == code and capsys.readouterr().err == "how to continue\n"
    assert signal.getsignal(number) == before  # a second one ends the process


def test_python_sessions_catch_ctrl_c_as_ever() -> None:
    Handlers(str).install()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_handlers_of_others_and_ignored_signals_stay() -> None:
    def theirs(*_: object) -> None: ...

    signal.signal(signal.SIGINT, theirs)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handlers = Handlers(str)
    handlers.install()
    assert signal.getsignal(signal.SIGINT) is theirs and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers.install()
    signal.signal(signal.SIGINT, theirs)  # installed while ours was there
    handlers.restore()
    assert signal.getsignal(signal.SIGINT) is theirs


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=Handlers(str).install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_says_where_its_answers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = EvaluationRun(tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), run.guarded():
        run.open("m", {"model": "m"})
        signal.raise_signal(signal.SIGTERM)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "run" / ".unfinished") in line and "Start the same command again" in line
    with pytest.raises(ZeroDivisionError), run.guarded():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before
    with run.guarded():
        pass
    assert signal.getsignal(signal.SIGTERM) != before  # scores are still to come
    run.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(KeyboardInterrupt), EvaluationRun().guarded():
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_a_command_and_no_python_session(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as raised, new_session().run.guarded():
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(raised.value, SystemExit)
    token = command_line._arguments.set(Namespace())
    try:
        with pytest.raises(Interrupted) as raised, new_session().run.guarded():
            signal.raise_signal(signal.SIGINT)
    finally:
        command_line._arguments.reset(token)
    assert isinstance(raised.value, SystemExit) and raised.value.code == 130


@pytest.mark.parametrize("error", [OSError(5, "no terminal"), RuntimeError("reentrant call"), ValueError("closed")])
def test_the_exit_code_stays_where_nothing_can_be_printed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(line: str) -> None:
        raise error

    monkeypatch.setattr(signals, "print_error", failing)
    Handlers(lambda: "how to continue").install()
    with pytest.raises(Terminated) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143


def test_a_run_that_is_not_scored_lets_go_of_signals_and_folder(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for end in ("predicted", "failed"):
        run = EvaluationRun(tmp_path / end)
        run.task("a", settings=SettingsEntry(dataset="toy"))
        run.task("b", settings=SettingsEntry(dataset="toy"))
        with run.guarded():
            folder = run.open("m", {"model": "m"}) and run.folder
        assert folder is not None
        if end == "predicted":
            run.predicted("a", 3)
            assert signal.getsignal(signal.SIGTERM) != before  # the other task is still to come
            run.predicted("b", 3)
        else:
            with pytest.raises(ZeroDivisionError), run.closed_on_error():
                raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) == before and FolderLock(folder).acquire()
        assert run.manifest.finished is None and list((folder / ".unfinished").iterdir())
