"""Ctrl-C and SIGTERM: one line, the usual exit code, and the handlers of before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medmllm_plugins.host import run
from medmllm_plugins.host.run import Run
from medmllm_plugins.host.signals import Handlers, Interrupted, Terminated

KINDS = {signal.SIGINT: (Interrupted, 130), signal.SIGTERM: (Terminated, 143)}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in KINDS}
    run._current = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    run._current = None


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
    progress = run.start(tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), progress.guarded():
        progress.open("m", {"model": "m"})
        signal.raise_signal(signal.SIGTERM)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "run" / ".unfinished") in line and "Start the same command again" in line
    with pytest.raises(ZeroDivisionError), progress.guarded():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before
    with progress.guarded():
        pass
    assert signal.getsignal(signal.SIGTERM) != before  # scores are still to come
    run.start()
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Interrupted), Run().guarded():
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == ""
