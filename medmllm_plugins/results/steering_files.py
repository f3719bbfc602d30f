"""Steering as files: ``TASK.steering.json`` with everything, and a tidy table as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.results.file_names import STEERING, STEERING_POINTS
from medmllm_plugins.results.steering_records import Steering
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

STEERING_COLUMNS: Final = ("layer", "tokens", "direction", "dose", "metric", "value", "low", "high")


def write_steering(folder: Path, stem: str, result: Steering) -> None:
    """Write the result of steering into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / f"{stem}{STEERING}", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{stem}{STEERING_POINTS}", csv_text(STEERING_COLUMNS, steering_rows(result)))


def steering_rows(result: Steering) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of effects, with the columns :data:`STEERING_COLUMNS`."""
    for probe in result.probes:
        yield (probe.layer, probe.tokens, "", 0.0, "probe_accuracy", number(probe.accuracy), None, None)
    for point in result.points:
        push = (point.layer, point.tokens, point.direction, point.dose)
        for name in ("shift", "flips"):
            yield (*push, name, *getattr(point, name).to_dict().values())
        for name in ("on_labels", "parsed", "perplexity"):
            yield (*push, name, number(getattr(point, name)), None, None)
