"""The results of plugins' interventions of a task, from the scores under all conditions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.host.planned_replies import classes_and_groups, planned_replies
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
    replies = planned_replies(
        content.name,
        run,
        plan,
        ability="plugins can intervene in",
        replies="scores under all interventions",
    )
    assert plan is not None, "its absence is an error above"
    rows = [content.row_list[index] for index in content.patched_rows]
    truth, group = classes_and_groups(content, rows)
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
