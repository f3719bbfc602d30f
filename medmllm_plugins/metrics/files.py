"""Text files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


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


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """CSV with a header line; ``None`` becomes an empty cell, and floats keep all of their digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
