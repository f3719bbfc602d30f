"""Plugins' interventions as files: ``TASK.interventions.json`` with everything, and a tidy table as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.results.file_names import INTERVENTION_POINTS, INTERVENTIONS
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

INTERVENTION_COLUMNS: Final = ("intervention", "condition", "metric", "value", "low", "high")


def write_interventions(folder: Path, stem: str, results: InterventionResults) -> None:
    """Write the results of interventions into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / f"{stem}{INTERVENTIONS}", json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{stem}{INTERVENTION_POINTS}", csv_text(INTERVENTION_COLUMNS, intervention_rows(results)))


def intervention_rows(results: InterventionResults) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of effects, with the columns :data:`INTERVENTION_COLUMNS`."""
    for result in results.results:
        for point in result.points:
            for name in ("accuracy", "lost", "log_odds_lost"):
                yield (result.name, point.condition, name, *getattr(point, name).to_dict().values())
