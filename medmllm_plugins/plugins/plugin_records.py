"""What the plugin manager reports: plugins, failures, and the tasks of the host's index."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple

Stage = Literal["import", "register", "hook", "duplicate", "invalid", "task file"]
IN_PROCESS: Final = "(registered in process)"


# Named tuples, because dataclasses take four times as long to create, and every command of the host waits for it.
class Failure(NamedTuple):
    """A part of a plugin that was left out.

    Attributes:
        plugin: name of the plugin's entry point.
        distribution: the distribution it comes from; empty if no plugin is to blame.
    """

    plugin: str
    distribution: str
    version: str
    stage: Stage
    hook: str | None
    message: str

    def __str__(self) -> str:
        origin = f" ({origin_of(self.distribution, self.version)})" if self.distribution else ""
        return f"plugin {self.plugin}{origin}: {self.stage}{f' of {self.hook}' if self.hook else ''}: {self.message}"


class PluginInfo(NamedTuple):
    """A plugin that is registered, or disabled by ``MEDMLLM_DISABLE``; ``hooks`` are those that are not faulty."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    disabled: bool = False


USER: Final = PluginInfo("(user)", "", "", ("medmllm_tasks",))
"""The user's own task folder, listed among the plugins."""


class TaskEntry(NamedTuple):
    """A task or a group of tasks with its YAML file, as the host's index needs it."""

    name: str
    path: Path
    kind: Literal["task", "group"]
    plugin: str


def origin_of(distribution: str, version: str) -> str:
    """Return a distribution with its version, as messages name it."""
    return f"{distribution} {version}".rstrip()


def name_taken(what: str, name: str, first: PluginInfo, second: PluginInfo) -> str:
    """Return the message for a name that two plugins use."""
    return (
        f"The {what} name {name!r} is taken by {origin_of(first.distribution, first.version)}; "
        f"that of {origin_of(second.distribution, second.version)} is left out."
    )
