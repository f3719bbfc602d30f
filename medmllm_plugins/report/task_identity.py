"""Identity of a task: two results are comparable only if their tasks ask the same question about the same data."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import number

_SETTINGS: Final = ("dataset_options", "protocol", "folds", "finding", "view", "order", "paraphrase", "image")
"""Settings that decide what a task asks."""


def count_shots(run: RunFolder, task: TaskRun) -> int:
    """Return the number of solved examples before each question."""
    shots = number(run.command.get("num_fewshot") if task.entry.shots is None else task.entry.shots)
    return max(0, int(shots)) if known(shots) else 0


def identity(run: RunFolder, task: TaskRun) -> dict[str, str]:
    """Return what a task asks about which data, as text by setting; equal text means equal settings."""
    settings = task.settings.to_dict()
    texts = {name: json.dumps(settings[name], sort_keys=True, default=str) for name in _SETTINGS}
    return {"dataset_fingerprint": task.entry.dataset_fingerprint, **texts, "shots": str(count_shots(run, task))}


def question(run: RunFolder, task: TaskRun, without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the values of :func:`identity`, some keys left out; they are equal for tasks that ask the same."""
    return tuple(value for name, value in identity(run, task).items() if name not in without)
