"""The reference of all commands as a page of the documentation, made from their own help.

``python -m medmllm_plugins.cli.command_reference docs/reference/commands.md`` writes it; with ``--check`` the command
fails where the page is outdated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from typer.cli import get_docs_for_click

from medmllm_plugins.cli.app import COMMANDS, HOST, load_command
from medmllm_plugins.utils.atomic_files import write_whole

_HEAD: Final = """# Commands

All commands end with status 0 if they succeed, 1 if they fail, and 2 if the command line is wrong.
`medmllm lmms-eval …` takes the arguments of lmms-eval and knows all tasks of this package. This page is made from the
help of the commands.

"""


def command_reference() -> str:
    """Return the page in Markdown."""
    parts = [_HEAD]
    for name in COMMANDS:
        if name == HOST:
            continue
        command = load_command(name)
        context = command.make_context(name, [], resilient_parsing=True)
        text = get_docs_for_click(obj=command, ctx=context, name=name, call_prefix="medmllm", indent=1)
        parts.append(_tidied(text))
    return "".join(parts).rstrip() + "\n"


def _tidied(text: str) -> str:
    """Return what typer writes without its spaces at line ends and its doubled empty lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it with ``--check``; return the exit status."""
    check = "--check" in arguments
    paths = [Path(argument) for argument in arguments if not argument.startswith("--")]
    if len(paths) != 1:
        print("Expected one path, such as docs/reference/commands.md.", file=sys.stderr)
        return 2
    (path,) = paths
    page = command_reference()
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)
        return 0
    if path.is_file() and path.read_text("utf-8") == page:
        return 0
    print(f"{path}: expected the help of the commands as it is, got an older one. Run this command without --check.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
