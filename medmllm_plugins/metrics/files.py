"""Text files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path`` and move it there, so that a reader never sees half of it.

    Raises:
        OSError: the folder cannot be written; ``path`` is then as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula, at once or behind a separator that it skips."""


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """CSV with a header line; ``None`` becomes an empty cell, and floats keep all of their digits.

    Text that a spreadsheet would run as a formula, such as an answer ``=HYPERLINK(…)``, gets an apostrophe before it,
    by which spreadsheets know text. Numbers stay numbers, negative ones too.
    """
    return "".join(map(_line, (header, *rows)))


def _line(row: Sequence[str | int | float | None]) -> str:
    buffer = io.StringIO()
    # With this end of a line, and not with "\n" alone, a carriage return within a cell is quoted: unquoted it would
    # begin another row, and what follows it could be a formula.
    csv.writer(buffer, lineterminator="\r\n").writerow(_inert(one) if isinstance(one, str) else one for one in row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
