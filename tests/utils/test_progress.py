"""Off a terminal, long work says a line after ten seconds and one a minute; by a clock of the test's own."""

from __future__ import annotations

import io
import sys
import threading
import time
from typing import Any

import pytest

from medmllm_plugins.utils import progress as module
from medmllm_plugins.utils.progress import EVERY, FIRST, Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread looks at the clock: the test does."""
    monkeypatch.setattr(Progress, "_watch", lambda self: None)


def made(clock: Clock, lines: list[str], total: int | None = 480, **settings: Any) -> Progress:
    return Progress("medm_vl", total, clock=clock, say=lines.append, **{"shown": True, "terminal": False, **settings})


def test_a_line_after_ten_seconds_then_one_a_minute(still: None) -> None:
    clock, lines = Clock(), list[str]()
    with made(clock, lines) as progress:
        seen = []
        for second in range(1, 200):
            clock.now = 100.0 + second
            progress.update(2)
            progress.beat()
            if len(lines) > len(seen):
                seen.append(second)
        assert seen == [FIRST, FIRST + EVERY, FIRST + 2 * EVERY, FIRST + 3 * EVERY]
    assert lines[0] == "medm_vl: 20 of 480 documents (4%), 2.0 a second, about 3 min 50 s left"
    assert lines[-1] == "medm_vl: 398 documents done in 3 min 19 s"


def test_short_work_says_nothing(still: None) -> None:
    clock, lines = Clock(), list[str]()
    with made(clock, lines) as progress:
        clock.now += FIRST - 0.1
        progress.update(480)
        progress.beat()
    assert lines == []


def test_lines_come_where_no_step_is_done(still: None) -> None:
    """One batch of a large model may take minutes."""
    clock, lines = Clock(), list[str]()
    with made(clock, lines) as progress:
        for _ in range(3):
            clock.now += 60
            progress.beat()
    assert lines[:3] == [f"medm_vl: 0 of 480 documents (0%), {minutes} min 0 s so far" for minutes in (1, 2, 3)]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"done": 440}, "medm_vl: 460 of 480 documents (96%), 20.0 a minute, about 1 min 0 s left"),
        ({"total": None}, "medm_vl: 20 documents, 20.0 a minute, 1 min 0 s so far"),
        ({"total": 10}, "medm_vl: 20 of 10 documents (200%), 20.0 a minute, about 0 s left"),
        ({"unit": "sites"}, "medm_vl: 20 of 480 sites (4%), 20.0 a minute, about 23 min left"),
    ],
)
def test_what_a_line_says(still: None, settings: dict[str, Any], line: str) -> None:
    clock, lines = Clock(), list[str]()
    with made(clock, lines, **settings) as progress:
        clock.now += 60
        progress.update(20)
        progress.beat()
    assert lines[0] == line


def test_a_note_is_told(still: None) -> None:
    clock, lines = Clock(), list[str]()
    with made(clock, lines) as progress:
        progress.note = "unparsed=3"
        progress.update()
        clock.now += 60
        progress.beat()
    assert lines[0].endswith("left, unparsed=3")


def test_work_that_failed_is_not_said_to_be_done(still: None) -> None:
    clock, lines = Clock(), list[str]()
    with pytest.raises(RuntimeError), made(clock, lines) as progress:
        clock.now += 60
        progress.beat()
        raise RuntimeError
    assert len(lines) == 1


def test_work_that_is_not_counted_ends_without_a_count(still: None) -> None:
    clock, lines = Clock(), list[str]()
    with made(clock, lines, total=None) as progress:
        clock.now += 11
        progress.beat()
    assert lines == ["medm_vl: at work, 11 s so far", "medm_vl: done in 11 s"]


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("", True), ("0", True), ("1", False), ("7", False)])
def test_the_first_process_alone_tells(rank: str | None, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    clock, lines = Clock(), list[str]()
    with Progress("work", 5, clock=clock, say=lines.append, terminal=False) as progress:
        clock.now += 60
        progress.beat()
    assert bool(lines) is shown


def test_a_thread_looks_at_the_clock_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    monkeypatch.setattr(module, "FIRST", 0.02)
    with Progress("work", 5, shown=True, terminal=False):
        deadline = time.monotonic() + 5
        err = ""
        while not err and time.monotonic() < deadline:
            time.sleep(0.01)
            err = capsys.readouterr().err
    assert err.startswith("work: 0 of 5 documents (0%)")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(item.name == "medmllm-progress" for item in threading.enumerate()):
        time.sleep(0.01)
    assert not any(item.name == "medmllm-progress" for item in threading.enumerate())


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    clock, lines = Clock(), list[str]()
    with Progress("medm_vl", 4, clock=clock, say=lines.append, shown=True) as progress:
        clock.now += 600
        progress.note = "unparsed=1"
        progress.update(4)
        progress.beat()
    assert "4/4" in terminal.getvalue() and "medm_vl" in terminal.getvalue() and "unparsed=1" in terminal.getvalue()
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (599, "9 min 59 s"),
        (725, "12 min"),
        (3599.4, "60 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
