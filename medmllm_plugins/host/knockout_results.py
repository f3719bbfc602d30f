"""The result of attention knock-out of a task, from the scores after all cuts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medmllm_plugins.errors import DataError
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
    if plan is None:
        raise DataError(
            f"{content.name}: expected a model of this package, which cuts attention to the image, got answers alone. "
            "If they came from the host's cache, run again without --use_cache."
        )
    replies = run.replies(plan.names)
    if plan.failure or len(replies) < len(plan.names):
        raise DataError(
            f"{content.name}: expected scores with attention to the image cut, got none of some: "
            f"{plan.failure or 'a process stopped'}. Start the same command again to continue."
        )
    rows = [content.row_list[index] for index in content.patched_rows]
    classes = list(content.question(rows[0]).classes)
    truth = np.array([classes.index(row["label"]) for row in rows], dtype=np.intp)
    group = np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
    scores = {
        condition: [replies[CutKey(row["document"], condition)].scores or () for row in rows]
        for condition in dict.fromkeys(key.condition for key in plan.names)
    }
    result = replace(knockout_effects(scores, truth, group), task=content.name)
    result = replace(result, headline=headline(result))
    write_knockout(folder, file_stem(content.name), result)
    return result
