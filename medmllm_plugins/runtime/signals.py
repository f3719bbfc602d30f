"""Ctrl-C and SIGTERM while a run is under way: one line that says how to continue, and the usual exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from medmllm_plugins.errors import print_error

_HANDLED: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C in a command, which it ends with exit code 130; ``except KeyboardInterrupt`` catches it too."""


class Terminated(SystemExit):
    """SIGTERM, as sent at a time limit: ends a command with exit code 143."""


class Handlers:
    """The handlers of this process, between :meth:`install` and :meth:`restore`."""

    def __init__(self, message: Callable[[], str], in_command: Callable[[], bool] = lambda: True) -> None:
        """Prepare them.

        Args:
            message: gives the line to print; nothing is printed where it is empty.
            in_command: whether the process is a command, which ends. Otherwise Ctrl-C raises a plain
                ``KeyboardInterrupt``, so that a Python session continues.
        """
        self._message = message
        self._in_command = in_command
        self._earlier: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take both signals over; without effect outside the main thread, and for a signal that is ignored.

        A handler that other code installed stays too.
        """
        if threading.current_thread() is not threading.main_thread() or self._earlier:
            return
        for number in _HANDLED:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._earlier[number] = signal.signal(number, self._stop)

    def restore(self) -> None:
        """Put the earlier handlers back, where ours are still in place."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._earlier.items():
            if signal.getsignal(number) == self._stop:
                signal.signal(number, handler)
        self._earlier.clear()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.restore()  # a second Ctrl-C ends the process at once
        if message := self._message():
            # Standard error may be gone with its terminal, or in the middle of another line: the exit code stays.
            with suppress(OSError, RuntimeError, ValueError):
                print_error(message)
        if number == signal.SIGINT and not self._in_command():
            raise KeyboardInterrupt
        code = 128 + number
        raise Interrupted(code) if number == signal.SIGINT else Terminated(code)
