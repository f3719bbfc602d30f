"""The subcommands of ``medmllm``, for tests of the commands that software and documentation suggest."""

from __future__ import annotations

from functools import cache
from typing import Any

from medmllm_plugins.cli.app import COMMANDS, HOST, load_command


@cache
def subcommands() -> dict[str, Any]:
    """Every subcommand by name, those of a group as ``task new`` and ``task list``."""
    commands: dict[str, Any] = {}
    for name in COMMANDS:
        if name == HOST:
            continue
        command = load_command(name)
        inner = getattr(command, "commands", None)
        commands |= {name: command} if inner is None else {f"{name} {word}": inner[word] for word in inner}
    return commands


def find_subcommand(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the subcommand that a command line begins with, and the words for it; "" if there is none."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in subcommands():
            return name, words[count:]
    return "", words


def options_of(name: str) -> set[str]:
    """Return the options of a subcommand, such as ``--json`` and ``--no-controls``."""
    return {"--help", "-h"} | {
        option
        for param in subcommands()[name].params
        for option in (*param.opts, *param.secondary_opts)
        if option[0] == "-"
    }


def takes_arguments(name: str) -> bool:
    """Return whether a subcommand cannot run without words."""
    return any(param.required for param in subcommands()[name].params)
