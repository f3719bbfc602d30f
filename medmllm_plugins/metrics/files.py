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
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_inert(name) for name in header])
    writer.writerows([_inert(value) if isinstance(value, str) else value for value in row] for row in rows)
    return buffer.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
