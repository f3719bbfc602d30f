"""An analysis on disk: JSON with everything, and tidy tables for pandas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate, number
from medmllm_plugins.probes.analysis import Analysis
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

SUFFIX: Final = ".probes.json"
CURVES: Final = ".probes.csv"
EFFECTS: Final = ".diagnosis.csv"
SUFFIXES: Final = (SUFFIX, CURVES, EFFECTS)
"""Endings of all files that :func:`write` writes."""
_COLUMNS: Final = ("layer", "part", "pooling", "width", "read", "fold", "metric", "value", "low", "high")

Cell = str | int | float | None


def write(folder: Path, stem: str, analysis: Analysis) -> list[Path]:
    """Write an analysis into a run folder.

    Args:
        folder: the run folder.
        stem: the task's part of the files' names.
        analysis: what to write.

    Returns:
        The files: JSON, the curves (a row a layer, pooling, fold and metric), and the four modes.

    Raises:
        OSError: the folder cannot be written.
    """
    texts = {
        SUFFIX: json.dumps(analysis.to_dict(), indent=2, ensure_ascii=False) + "\n",
        CURVES: csv_text(_COLUMNS, _rows(analysis)),
        EFFECTS: csv_text(
            ("mode", "loss", "low", "high", "verdict", "named", "before", "after", "why"),
            [
                (
                    one.mode,
                    *_numbers(one.loss),
                    one.verdict,
                    str(one.mode == analysis.diagnosis.named).lower(),
                    one.before,
                    one.after,
                    one.why,
                )
                for one in analysis.diagnosis.effects
            ],
        ),
    }
    written = []
    for suffix, text in texts.items():
        path = folder / f"{stem}{suffix}"
        write_whole(path, text)
        written.append(path)
    return written


def _numbers(found: Estimate) -> tuple[float | None, float | None, float | None]:
    return number(found.value), number(found.low), number(found.high)


def _rows(analysis: Analysis) -> Iterator[tuple[Cell, ...]]:
    for point in analysis.points:
        key = point.key
        place: tuple[Cell, ...] = (key.layer, key.part, key.pooling, key.width, str(key.read).lower())
        for name in ("accuracy", "balanced", "corrected", "control", "selectivity"):
            yield (*place, "test", name, *_numbers(getattr(point, name)))
        for name in ("label_permutation", "label_permutation_high", "p", "p_holm"):
            yield (*place, "test", name, number(getattr(point, name)), None, None)
        yield (*place, "validation", "accuracy", number(point.validation), None, None)
        for turn, value in enumerate(point.repeats, start=1):
            yield (*place, f"repeat {turn}", "accuracy", number(value), None, None)
