"""Text files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

_DRAFT: Final = re.compile(r"\..*?(?P<process>\d+)\.tmp")


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 text beside ``path`` and move it there, so that a reader never sees half of it.

    If it is ``private``, its owner alone may read it (mode 600), as where it holds the arguments of a command.

    Raises:
        OSError: the folder cannot be written; ``path`` is then as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        # Never open to others, not even while it is being written.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        # A lone surrogate, which JSON may hold and UTF-8 may not, is written as JSON writes it.
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as handle:
            handle.write(text)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path, below: Sequence[str] = ()) -> None:
    """Remove what processes that were killed left of files they were writing.

    Of the folders ``below``, named relative to ``folder``, all subfolders are searched too.
    """
    for path in [*folder.glob(".*.tmp"), *(path for name in below for path in (folder / name).rglob(".*.tmp"))]:
        match = _DRAFT.fullmatch(path.name)
        if match is not None and not _alive(int(match["process"])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    import psutil  # not at import time, which every command of lmms-eval pays for

    try:
        return process > 0 and psutil.pid_exists(process)
    except OverflowError:
        return False


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula, at once or behind a separator that it skips."""


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Return CSV with a header line; ``None`` becomes an empty cell, and floats keep all of their digits.

    Text that a spreadsheet would run as a formula, such as an answer ``=HYPERLINK(…)``, gets an apostrophe before it,
    by which spreadsheets know text. Numbers stay numbers, negative ones too.
    """
    return "".join(map(_line, (header, *rows)))


def _line(row: Sequence[str | int | float | None]) -> str:
    buffer = io.StringIO()
    # With this end of a line, and not with "\n" alone, a carriage return within a cell is quoted: unquoted it would
    # begin another row, and what follows it could be a formula.
    csv.writer(buffer, lineterminator="\r\n").writerow(_inert(cell) if isinstance(cell, str) else cell for cell in row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
