"""Interchange as files: ``TASK.interchange.json`` with everything, and a tidy table as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.results.file_names import INTERCHANGE, INTERCHANGE_POINTS
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

INTERCHANGE_COLUMNS: Final = ("layer", "tokens", "donor", "metric", "value", "low", "high")


def write_interchange(folder: Path, stem: str, result: Interchange) -> None:
    """Write the result of interchange into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / f"{stem}{INTERCHANGE}", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{stem}{INTERCHANGE_POINTS}", csv_text(INTERCHANGE_COLUMNS, interchange_rows(result)))


def interchange_rows(result: Interchange) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of effects, with the columns :data:`INTERCHANGE_COLUMNS`."""
    for point in result.points:
        for name in ("effect", "flips"):
            yield (point.layer, point.tokens, point.donor, name, *getattr(point, name).to_dict().values())
