"""What a task asks: runs may be held against each other only where that is the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import number

_USUAL: Final[Mapping[str, Any]] = {
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
"""Facts of a manifest that decide what a task asks, and what they are where a manifest does not tell them."""


def shots(run: RunFolder, task: TaskRun) -> int:
    """Number of solved examples before each question."""
    told = task.told.get("shots")
    found = number(run.command.get("num_fewshot") if told is None else told)
    return max(0, int(found)) if known(found) else 0


def facts(run: RunFolder, task: TaskRun) -> dict[str, str]:
    """What a task asks and about which data, as text by the names of a manifest; equal text, equal facts."""
    told = {name: _plain(task.told.get(name), usual) for name, usual in _USUAL.items()}
    return {**told, "shots": str(shots(run, task))}


def question(run: RunFolder, task: TaskRun, but: Collection[str] = ()) -> tuple[str, ...]:
    """What a task asks and about which data, all but the facts named; equal for tasks that ask the same.

    Args:
        run: the run it is part of.
        task: the task.
        but: names of facts to leave out: ``"image"``, ``"order"``, ``"paraphrase"`` and the like.
    """
    return tuple(value for name, value in facts(run, task).items() if name not in but)


def _plain(value: Any, usual: Any) -> str:
    return json.dumps(usual if value is None else value, sort_keys=True, default=str)
