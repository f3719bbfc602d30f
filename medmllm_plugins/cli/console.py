"""What all subcommands share: their Typer settings, tables on a terminal, plain text in pipes and files, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand

JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def new_app() -> typer.Typer:
    """Return an empty command: plain help texts, no shell completion, and no tracebacks drawn by rich."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class MultiValueCommand(TyperCommand):
    """A command whose repeatable options also take several values at once: ``--ids A B`` means ``--ids A --ids B``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        repeatable = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        return super().parse_args(ctx, list(_repeat_options(args, repeatable)))


def _repeat_options(words: Iterable[str], repeatable: set[str]) -> Iterator[str]:
    option, values = "", 0
    for word in words:
        if word.startswith("-"):
            option, values = (word if word in repeatable else ""), 0
        elif option:
            values += 1
            if values > 1:
                yield option
        yield word


def print_json(content: Any) -> None:
    """Print indented JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], plain: Iterable[str]) -> None:
    """Print a table on a terminal, and plain lines where the output is piped or written to a file.

    ``plain`` are the lines to print instead of the rows.
    """
    if not sys.stdout.isatty():
        for line in plain:
            print(line)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))  # Text, because rich reads [brackets] of a str as markup
    Console().print(table)
