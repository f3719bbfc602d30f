"""Identity of a task: two results are comparable only if their tasks ask the same question about the same data."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import number

_DEFAULTS: Final[Mapping[str, Any]] = {
    "dataset_fingerprint": None,
    "dataset_options": {},
    "protocol": "closed_set",
    "folds": ["test"],
    "finding": None,
    "view": None,
    "order": "given",
    "paraphrase": 0,
    "image": "shown",
}
"""Keys of a manifest that decide what a task asks, with the values of a manifest that lacks them."""


def count_shots(run: RunFolder, task: TaskRun) -> int:
    """Return the number of solved examples before each question."""
    value = task.metadata.get("shots")
    shots = number(run.command.get("num_fewshot") if value is None else value)
    return max(0, int(shots)) if known(shots) else 0


def identity(run: RunFolder, task: TaskRun) -> dict[str, str]:
    """Return what a task asks about which data, as text by manifest key; equal text means equal facts."""
    values = {name: task.metadata.get(name) for name in _DEFAULTS}
    facts = {
        name: json.dumps(_DEFAULTS[name] if value is None else value, sort_keys=True, default=str)
        for name, value in values.items()
    }
    return {**facts, "shots": str(count_shots(run, task))}


def question(run: RunFolder, task: TaskRun, without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the values of :func:`identity`, some keys left out; they are equal for tasks that ask the same."""
    return tuple(value for name, value in identity(run, task).items() if name not in without)
