"""The replies to a plan of interventions, and what is known of the documents they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply

Key = TypeVar("Key")


class Plan(Protocol[Key]):
    """Names of all replies in the journal, and why some are missing; empty if none is."""

    @property
    def names(self) -> Mapping[Key, str]:
        """Names in the journal by what the replies are."""

    @property
    def failure(self) -> str:
        """Why some are missing."""


def planned_replies(
    name: str, run: EvaluationRun, plan: Plan[Key] | None, *, ability: str, replies: str
) -> dict[Key, Reply]:
    """Return all replies to a plan.

    Args:
        name: the task's name.
        run: the run.
        plan: the plan; ``None`` where the model was not asked.
        ability: what models of this package do, as in "which cuts attention".
        replies: what is expected, in the plural.

    Raises:
        DataError: some are missing.
    """
    if plan is None:
        raise DataError(
            f"{name}: expected a model of this package, which {ability}, got answers alone. If they came from the "
            "host's cache, run again without --use_cache."
        )
    known = run.replies(plan.names)
    if plan.failure or len(known) < len(plan.names):
        raise DataError(
            f"{name}: expected {replies}, got none of some: {plan.failure or 'a process stopped'}. Start the same "
            "command again to continue."
        )
    return known


def classes_and_groups(content: TaskContent, rows: Sequence[Row]) -> tuple[Ints, Ints]:
    """Return the classes and groups of documents, (n,) each."""
    classes = list(content.question(rows[0]).classes)
    truth = np.array([classes.index(row["label"]) for row in rows], dtype=np.intp)
    return truth, np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
