"""The results of plugins' interventions of a task, from the scores under all conditions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.interventions.paired_losses import paired_losses
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.intervention_files import write_interventions
from medmllm_plugins.results.intervention_records import ConditionPoint, Intervention, InterventionResults
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.intervention_loop import OWN, InterventionKey, InterventionPlan


def write_intervention_results(content: TaskContent, run: EvaluationRun, folder: Path) -> InterventionResults:
    """Measure the effects of all conditions, and write them into the run folder.

    Raises:
        DataError: some scores are missing.
    """
    plan: InterventionPlan | None = run.intervened.get(content.name)
    if plan is None:
        raise DataError(
            f"{content.name}: expected a model of this package, which plugins can intervene in, got answers alone. "
            "If they came from the host's cache, run again without --use_cache."
        )
    replies = run.replies(plan.names)
    if plan.failure or len(replies) < len(plan.names):
        raise DataError(
            f"{content.name}: expected scores under all interventions, got none of some: "
            f"{plan.failure or 'a process stopped'}. Start the same command again to continue."
        )
    rows = [content.row_list[index] for index in content.patched_rows]
    classes = list(content.question(rows[0]).classes)
    truth = np.array([classes.index(row["label"]) for row in rows], dtype=np.intp)
    group = np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
    declared = get_manager().interventions()
    scores: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for name in dict.fromkeys(key.name for key in plan.names):
        for row in rows:
            for condition, values in json.loads(replies[InterventionKey(row["document"], name)].text).items():
                scores.setdefault(name, {}).setdefault(condition, []).append(tuple(values))
    results = []
    for name, conditions in scores.items():
        if name == OWN:
            continue
        if uneven := sorted(condition for condition, some in conditions.items() if len(some) != len(rows)):
            raise DataError(f"{content.name}: expected {name} to give all documents {uneven}, got some without.")
        accuracy, losses = paired_losses(scores[OWN][OWN], conditions, truth, group)
        points = tuple(
            ConditionPoint(
                condition=condition, accuracy=loss.accuracy, lost=loss.lost, log_odds_lost=loss.log_odds_lost
            )
            for condition, loss in losses.items()
        )
        spec = declared[name]
        results.append(
            Intervention(name=name, summary=spec.summary, citation=spec.citation, accuracy=accuracy, points=points)
        )
    result = InterventionResults(task=content.name, n=len(rows), groups=len(np.unique(group)), results=tuple(results))
    write_interventions(folder, file_stem(content.name), result)
    return result
