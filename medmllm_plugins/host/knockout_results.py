"""The result of attention knock-out of a task, from the scores after all cuts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medmllm_plugins.host.planned_replies import classes_and_groups, planned_replies
from medmllm_plugins.interventions.knockout_effects import headline, knockout_effects
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.knockout_files import write_knockout
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.knockout_loop import CutKey, CutPlan


def write_knockout_results(content: TaskContent, run: EvaluationRun, folder: Path) -> Knockout:
    """Measure the effects of all cuts, and write them into the run folder.

    Raises:
        DataError: some scores are missing.
    """
    plan: CutPlan | None = run.cut.get(content.name)
    replies = planned_replies(
        content.name,
        run,
        plan,
        ability="cuts attention to the image",
        replies="scores with attention to the image cut",
    )
    assert plan is not None, "its absence is an error above"
    rows = [content.row_list[index] for index in content.patched_rows]
    truth, group = classes_and_groups(content, rows)
    scores = {
        condition: [replies[CutKey(row["document"], condition)].scores or () for row in rows]
        for condition in dict.fromkeys(key.condition for key in plan.names)
    }
    result = replace(knockout_effects(scores, truth, group), task=content.name)
    result = replace(result, headline=headline(result))
    write_knockout(folder, file_stem(content.name), result)
    return result
