"""Attention knock-out as files: ``TASK.knockout.json`` with everything, and a tidy table as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.results.file_names import KNOCKOUT, KNOCKOUT_POINTS
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

KNOCKOUT_COLUMNS: Final = ("first", "last", "queries", "metric", "value", "low", "high")


def write_knockout(folder: Path, stem: str, result: Knockout) -> None:
    """Write the result of attention knock-out into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / f"{stem}{KNOCKOUT}", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{stem}{KNOCKOUT_POINTS}", csv_text(KNOCKOUT_COLUMNS, knockout_rows(result)))


def knockout_rows(result: Knockout) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of effects, with the columns :data:`KNOCKOUT_COLUMNS`."""
    for point in result.points:
        for name in ("accuracy", "lost", "log_odds_lost"):
            yield (point.first, point.last, point.queries, name, *getattr(point, name).to_dict().values())
