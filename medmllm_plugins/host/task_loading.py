"""What the host's task loader knows and does not tell the tasks that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmllm_plugins.runtime.run_session import RunSession


@dataclass(frozen=True, slots=True)
class TaskLoading:
    """One call of the host's task loader, for models that take ``"chat"`` or ``"simple"`` requests."""

    task_type: str
    session: RunSession


_loading: ContextVar[TaskLoading | None] = ContextVar("medmllm_task_loading", default=None)


@contextmanager
def loading_tasks(task_type: str, session: RunSession) -> Iterator[None]:
    """Make :func:`task_loading` return these while the host loads tasks."""
    token = _loading.set(TaskLoading(task_type, session))
    try:
        yield
    finally:
        _loading.reset(token)


def task_loading() -> TaskLoading:
    """Return what is known of the load under way; a session of its own for a task that is made without the host."""
    if (loading := _loading.get()) is not None:
        return loading
    return TaskLoading("simple", new_session())


def new_session() -> RunSession:
    """Begin the session of an evaluation."""
    from medmllm_plugins.host import command_line  # not at import time, which every command of the host pays for
    from medmllm_plugins.runtime.run_session import RunSession

    return RunSession(in_command=lambda: command_line.arguments() is not None)
