"""Run code of plugins: catch all it raises, limit its time, and pass on the user's Ctrl-C.

Importing ``lmms_eval.models`` imports every plugin, so neither an exception of a plugin (not even a
``KeyboardInterrupt`` that it raises itself) nor an endless loop may leave this module. What a handler of SIGINT or
SIGTERM raises while a signal is delivered is not the plugin's, and is raised again.

Time is limited by SIGALRM, in the main thread of a process that does not use it otherwise. A thread for the plugin
would not work: it cannot be ended, and it would wait for the import lock that the main thread holds. The import of a
package that is not the plugin's own, such as torch, is never interrupted: it could not be imported again in that
process.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

from medmllm_plugins.errors import one_line, shown

SLOW: Final = 2.0
"""Seconds from which on a plugin is named as slow."""
NOTICE: Final = 5.0
"""Seconds after which it is named on standard error while it still runs."""
PATIENCE: Final = 30.0
"""Seconds after which it is interrupted."""
TICK: Final = 1.0
LONGEST: Final = 300
"""Characters of a plugin's own text in a message."""

Result = TypeVar("Result")
_Handler = Callable[[int, FrameType | None], Any]


class PluginRaised(Exception):
    """Code of a plugin raised ``error``."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(described(error))


class TookTooLong(BaseException):
    """Raised inside code of a plugin whose time is up; no ``except Exception`` of the plugin's catches it."""


def run_plugin_code(
    work: Callable[[], Result], what: str, package: str = "", slow: Callable[[float], None] | None = None
) -> Result:
    """Run code of a plugin.

    Args:
        work: the code.
        what: what it is, for the notice that it takes long.
        package: the plugin's own top-level package, whose import may be interrupted.
        slow: called with the seconds that it took, where these are more than ``SLOW``.

    Raises:
        PluginRaised: it raised something, or took longer than ``PATIENCE``.
        KeyboardInterrupt: Ctrl-C was pressed meanwhile; so for whatever handlers of SIGINT and SIGTERM raise.
    """
    watch = _Watch(what, package)
    raised: BaseException | None = None
    try:
        with watch:
            result = work()
    except BaseException as error:
        raised = error
    if watch.passing is not None:  # also where the plugin swallowed it
        raise watch.passing
    if slow is not None and watch.seconds > SLOW:
        slow(watch.seconds)
    if raised is not None:
        raise PluginRaised(raised) from raised
    return result


def bounded(text: str, most: int = LONGEST) -> str:
    """Return a text on one line, without characters that a terminal would obey, of at most ``most`` characters."""
    cut = text[: 4 * most]
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in cut).split())
    return line if len(line) <= most and len(cut) == len(text) else line[: most - 1] + "…"


def described(error: BaseException) -> str:
    """Return an error of a plugin on one line; also of one that cannot be printed."""
    try:
        return bounded(run_plugin_code(lambda: one_line(error), "the text of its error"))
    except PluginRaised:
        return bounded(type(error).__name__)


def pictured(value: object) -> str:
    """Return a value of a plugin as a message shows it; also of one that cannot be printed."""
    try:
        return bounded(run_plugin_code(lambda: shown(value), "the text of its value"))
    except PluginRaised:
        return f"a {bounded(type(value).__name__, 100)}"


class _Watch:
    """Signals while code of a plugin runs; outside the main thread, where there are none, it does nothing but time."""

    def __init__(self, what: str, package: str) -> None:
        self._what, self._package = what, package
        self._handlers: dict[int, tuple[_Handler, Any]] = {}
        self._running = self._noticed = False
        self._began = 0.0
        self.passing: BaseException | None = None
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._running = True
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if callable(previous):
                self._replace(number, self._passing_on(previous), previous)
        if not hasattr(signal, "setitimer"):  # Windows: nothing is interrupted there
            return
        if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            self._replace(signal.SIGALRM, self._tick, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, min(NOTICE, PATIENCE), min(TICK, PATIENCE))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._running = False
        self.seconds = time.monotonic() - self._began
        if hasattr(signal, "setitimer") and signal.SIGALRM in self._handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, (ours, previous) in self._handlers.items():
            if signal.getsignal(number) is ours:  # else the plugin put one of its own there
                signal.signal(number, previous)

    def _replace(self, number: int, ours: _Handler, previous: Any) -> None:
        self._handlers[number] = (ours, previous)
        signal.signal(number, ours)

    def _passing_on(self, previous: _Handler) -> _Handler:
        def handler(number: int, frame: FrameType | None) -> None:
            try:
                previous(number, frame)
            except BaseException as error:
                self.passing = error
                raise

        return handler

    def _tick(self, _: int, frame: FrameType | None) -> None:
        seconds = time.monotonic() - self._began
        if not self._running:
            return
        if not self._noticed:
            self._noticed = True
            print(
                f"medmllm-plugins: {self._what} has taken {seconds:.0f} s so far. MEDMLLM_DISABLE=NAME leaves a plugin "
                "out.",
                file=sys.stderr,
                flush=True,
            )
        if seconds >= PATIENCE and not _importing_another(frame, self._package):
            raise TookTooLong(f"it took longer than {PATIENCE:.0f} s")


def _importing_another(frame: FrameType | None, package: str) -> bool:
    """Return whether code of a plugin is importing a package that is not its own."""
    while frame is not None and frame.f_code is not run_plugin_code.__code__:
        code = frame.f_code
        importing = code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load"
        if importing and str(frame.f_locals.get("name", "")).partition(".")[0] != package:
            return True
        frame = frame.f_back
    return False
