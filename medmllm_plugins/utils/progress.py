"""How far long work has come: a bar on a terminal, and a line a minute where there is none, as under Slurm or cron."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

FIRST: Final = 10.0
"""Seconds until the first line."""
EVERY: Final = 60.0
"""Seconds between further lines."""
BEAT: Final = 1.0
"""Seconds between looks at the clock."""


class Progress:
    """One piece of long work, as a context manager; only the first of several processes shows it.

    Lines go to standard error: ``medm_vl: 120 of 480 documents (25%), 4.0 a second, about 1 min 30 s left``.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str = "documents",
        *,
        done: int = 0,
        shown: bool | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Describe ``total`` items, ``done`` of them by an earlier start; it begins when the context is entered."""
        self._name, self._total, self._unit, self._earlier, self._count = name, total, unit, done, done
        self._shown = int(os.environ.get("RANK") or 0) == 0 if shown is None else shown
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock, self._say = clock, say or say_line
        self._began = clock()
        self._due = self._began + FIRST
        self._lines = 0
        self._ended = threading.Event()
        self._bar: Any = None
        self.note = ""
        """Further text at the end of each line."""

    def __enter__(self) -> Progress:
        self._began = self._clock()
        self._due = self._began + FIRST
        if not self._shown:
            return self
        if self._terminal:
            from tqdm import tqdm

            unit = "doc" if self._unit == "documents" else f" {self._unit}"
            self._bar = tqdm(total=self._total, initial=self._earlier, desc=self._name, unit=unit, smoothing=0.05)
        else:
            threading.Thread(target=self._watch, name="medmllm-progress", daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.close()
        if self._lines and kind is None:
            counted = f"{self._count:,} {self._unit} " if self._count or self._total is not None else ""
            self._say(f"{self._name}: {counted}done in {duration(self._clock() - self._began)}")

    def update(self, count: int = 1) -> None:
        """Count further items as done."""
        self._count += count
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)

    def beat(self) -> None:
        """Say a line where one is due."""
        if not self._shown or self._terminal or self._clock() < self._due:
            return
        self._due = self._clock() + EVERY
        self._lines += 1
        self._say(self.line())

    def line(self) -> str:
        """Return how far the work is."""
        seconds = self._clock() - self._began
        so_far = f"{self._count:,} {self._unit}"
        if self._total:
            share = 100 * self._count / self._total
            so_far = f"{self._count:,} of {self._total:,} {self._unit} ({share:.0f}%)"
        rate = (self._count - self._earlier) / seconds if seconds > 0 else 0.0
        parts = [so_far if self._count or self._total else "at work"]
        if rate:
            parts.append(f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute")
            if self._total is not None:
                parts.append(f"about {duration(max(0, self._total - self._count) / rate)} left")
        if not rate or self._total is None:
            parts.append(f"{duration(seconds)} so far")
        return f"{self._name}: {', '.join([*parts, *([self.note] if self.note else [])])}"

    def _watch(self) -> None:
        while not self._ended.wait(BEAT):
            self.beat()


def duration(seconds: float) -> str:
    """Return a time in words: ``8 s``, ``1 min 30 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say_line(line: str) -> None:
    """Write a line to standard error at once."""
    print(line, file=sys.stderr, flush=True)
