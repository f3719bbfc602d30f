"""Names of files and folders in a run folder."""

from __future__ import annotations

from typing import Final

MANIFEST: Final = "manifest.json"
FEATURES: Final = "features"
ATTRIBUTIONS: Final = "attributions"
INDEX: Final = "index.json"
"""The index of the attributions of a task."""
METRICS: Final = ".metrics.json"
OUTCOMES: Final = ".outcomes.jsonl"
PROBES: Final = ".probes.json"
FOLDS: Final = ".folds.json"


def file_stem(task: str) -> str:
    """Return a task's name as a part of file names: its arguments are joined by ``+``."""
    return task.replace(":", "+")
