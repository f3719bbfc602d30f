"""The result of interchange of a task, from the scores after all exchanges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.host.planned_replies import planned_replies
from medmllm_plugins.interventions.interchange_effects import headline, interchange_effects
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.interchange_files import write_interchange
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.interchange_loop import ExchangeKey, ExchangePlan

FEW: Final = 20
"""With fewer documents a result is of little use."""


def write_interchange_results(content: TaskContent, run: EvaluationRun, folder: Path) -> Interchange:
    """Measure the effects of all exchanges, and write them into the run folder.

    Raises:
        DataError: some scores are missing.
    """
    name = content.name
    plan: ExchangePlan | None = run.exchanged.get(name)
    replies = planned_replies(
        name,
        run,
        plan,
        ability="puts states of other documents in",
        replies="scores with states of other documents",
    )
    assert plan is not None, "its absence is an error above"
    if not plan.donors:
        raise DataError(
            f"{name}: expected documents of other groups whose images give the same grid of tokens, got none for any "
            f"of {plan.left_out} documents. Raise n, or give all images one size."
        )
    rows = {row["document"]: row for row in (content.row_list[index] for index in content.patched_rows)}
    documents = list(plan.donors)
    classes = list(content.question(rows[documents[0]]).classes)
    truth, donor_truth = (
        np.array([classes.index(rows[document]["label"]) for document in some], dtype=np.intp)
        for some in (documents, [plan.donors[document].other for document in documents])
    )
    group = np.unique([rows[document]["group"] for document in documents], return_inverse=True)[1].astype(np.intp)
    conditions = dict.fromkeys(key.condition for key in plan.names)
    scores = {
        condition: [replies[ExchangeKey(document, condition)].scores or () for document in documents]
        for condition in conditions
    }
    result = interchange_effects(scores, truth, donor_truth, group, left_out=plan.left_out)  # type: ignore[arg-type]
    warnings = []
    if plan.left_out:
        warnings.append(
            f"{plan.left_out} of {len(rows)} documents are left out: no documents of other groups, of another and of "
            "their own class, have images with the same grid of tokens."
        )
    if len(documents) < FEW:
        warnings.append(f"Only {len(documents)} documents could be exchanged; raise n.")
    result = replace(result, task=name, headline=headline(result), warnings=tuple(warnings))
    write_interchange(folder, file_stem(name), result)
    return result
