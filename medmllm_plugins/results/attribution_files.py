"""Attributions in a run folder: the index of all maps, their files, and the table of checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.results.attribution_records import (
    SETTINGS,
    AttributionEntry,
    AttributionIndex,
    AttributionSummary,
)
from medmllm_plugins.results.file_names import INDEX
from medmllm_plugins.utils.atomic_files import csv_text, write_whole
from medmllm_plugins.utils.json_values import clean

_ESTIMATES: Final = (
    "completeness_gap", "stability", "inside", "pointing", "inside_hits", "inside_errors", "deletion_gain",
    "insertion_gain",
)  # fmt: skip


def read_attributions(content: Any, folder: Path) -> AttributionIndex:
    """Read an index of attributions, with absolute paths of its files.

    Args:
        content: the JSON of ``index.json``.
        folder: its folder. A file outside the folder, and one that does not exist, is left out with a warning.

    Raises:
        DataError: the content is something else, or of a newer version.
    """
    index = AttributionIndex.from_dict(content)
    missing: list[str] = []
    root = folder.resolve()
    entries = tuple(
        replace(
            entry,
            document=entry.document or entry.id,
            slices=max(1, entry.slices),
            original=_existing(root, entry.original, missing),
            heat=_existing(root, entry.heat, missing),
            overlay=_existing(root, entry.overlay, missing),
            map=_existing(root, entry.map, missing),
        )
        for entry in index.entries
    )
    warnings = index.warnings
    if missing:
        example = clean(missing[0])[:80]
        warnings = (*warnings, f"{len(missing)} files of the index are not in {folder.name}, such as {example!r}.")
    return replace(index, entries=entries, warnings=warnings)


def _existing(root: Path, name: Path | None, missing: list[str]) -> Path | None:
    if name is None:
        return None
    try:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    except (OSError, ValueError):
        pass  # a name that no file can have
    missing.append(str(name))
    return None


def read_map(entry: AttributionEntry) -> npt.NDArray[np.float32]:
    """Return a map as array.

    Returns:
        (slices, height, width) float32 for an image or volume; (n,) float32 for the tokens of a prompt.

    Raises:
        DataError: the file is missing or damaged.
    """
    if entry.map is None:
        raise DataError(f"{entry.id}: expected a map of {entry.method} at {entry.layer}, got no file of it.")
    try:
        with np.load(entry.map, allow_pickle=False) as arrays:
            name = next(name for name in ("map", "tokens", "values") if name in arrays)
            return np.asarray(arrays[name], dtype=np.float32)
    except (OSError, ValueError, KeyError, EOFError, StopIteration) as error:
        raise DataError(
            f"{entry.map}: expected a map, got {shown(one_line(error))}. Copy the run folder again."
        ) from error


def write_index(folder: Path, index: AttributionIndex) -> None:
    """Write ``index.json`` into the folder of a task's attributions."""
    write_whole(folder / INDEX, json.dumps(index.to_dict(), ensure_ascii=False, indent=1) + "\n")


def write_table(path: Path, summary: Sequence[AttributionSummary]) -> None:
    """Write the checks as CSV, a row for each method, layer and settings."""
    ends = [f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")]
    header = [*SETTINGS, "n", *ends, "area", "survives", "failed", "unchecked"]
    rows = [
        [
            *(getattr(row, name) for name in SETTINGS),
            row.n,
            *(value for name in _ESTIMATES for value in row.figure(name).to_dict().values()),
            row.area,
            row.survives,
            "; ".join(row.failed),
            "; ".join(row.unchecked),
        ]
        for row in summary
    ]
    write_whole(path, csv_text(header, rows))
