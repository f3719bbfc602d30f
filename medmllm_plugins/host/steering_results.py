"""The result of steering of a task, from the answers after all pushes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medmllm_plugins.host.planned_replies import classes_and_groups, planned_replies
from medmllm_plugins.interventions.steering_effects import headline, steering_effects
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.steering_files import write_steering
from medmllm_plugins.results.steering_records import Steering
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.steering_loop import PushKey, SteeringPlan, pushed_answer


def write_steering_results(content: TaskContent, run: EvaluationRun, folder: Path) -> Steering:
    """Measure the effects of all pushes, and write them into the run folder.

    Raises:
        DataError: some answers are missing.
    """
    plan: SteeringPlan | None = run.steered.get(content.name)
    replies = planned_replies(
        content.name,
        run,
        plan,
        ability="pushes states along directions of probes",
        replies="answers with states pushed",
    )
    assert plan is not None, "its absence is an error above"
    rows = [content.row_list[index] for index in content.patched_rows]
    truth, group = classes_and_groups(content, rows)
    target = np.array([plan.targets[row["document"]] for row in rows], dtype=np.intp)
    answers = {
        condition: [pushed_answer(replies[PushKey(row["document"], condition)]) for row in rows]
        for condition in dict.fromkeys(key.condition for key in plan.names)
    }
    classes = list(content.question(rows[0]).classes)

    def read(text: str) -> int:
        label = content.read_answer(rows[0], text).label
        return -1 if label is None else classes.index(label)

    result = steering_effects(answers, truth, target, group, plan.probes, read)
    result = replace(result, task=content.name, train_documents=plan.train_documents)
    result = replace(result, headline=headline(result))
    write_steering(folder, file_stem(content.name), result)
    return result
