"""Names of files and folders in a run folder."""

from __future__ import annotations

from typing import Final

RUNS: Final = "medmllm_runs"
"""Folder of run folders below the host's ``--output_path``."""
UNFINISHED: Final = ".unfinished"
"""Folder of the journals of runs that are not finished, beside the run folders."""
ANSWERS: Final = "answers.*.jsonl"
"""Files of a journal, one for each process."""
MANIFEST: Final = "manifest.json"
FEATURES: Final = "features"
ATTRIBUTIONS: Final = "attributions"
INDEX: Final = "index.json"
"""The index of the attributions of a task."""
METRICS: Final = ".metrics.json"
OUTCOMES: Final = ".outcomes.jsonl"
PROBES: Final = ".probes.json"
PROBE_CURVES: Final = ".probes.csv"
PROBE_EFFECTS: Final = ".diagnosis.csv"
ANCHORS: Final = ".anchors.csv"
ATTRIBUTION_CHECKS: Final = ".attributions.csv"
PATCHING: Final = ".patching.json"
PATCHING_POINTS: Final = ".patching.csv"
PATCHED_ANSWERS: Final = ".patched_answers.csv"
INTERCHANGE: Final = ".interchange.json"
INTERCHANGE_POINTS: Final = ".interchange.csv"
KNOCKOUT: Final = ".knockout.json"
KNOCKOUT_POINTS: Final = ".knockout.csv"
STEERING: Final = ".steering.json"
STEERING_POINTS: Final = ".steering.csv"
INTERVENTIONS: Final = ".interventions.json"
INTERVENTION_POINTS: Final = ".interventions.csv"
REPAIRS: Final = ".repair.json"
REPAIR_GAINS: Final = ".repair.csv"
REPAIR_FOLDERS: Final = "repairs"
"""Folder of the fitted repairs of a run."""
FOLDS: Final = ".folds.json"


def file_stem(task: str) -> str:
    """Return a task's name as a part of file names: its arguments are joined by ``+``."""
    return task.replace(":", "+")
