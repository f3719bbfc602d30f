"""Cut the attention of a run's model to the image, while it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

from loguru import logger

from medmllm_plugins.errors import one_line
from medmllm_plugins.interventions.knockout import Cut, cuts_of, knock_out
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, workload
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task

Condition = Cut | Literal["own"]
"""A cut; ``own`` for the model as it is."""


@dataclass(frozen=True, slots=True)
class CutKey:
    """Scores of one document."""

    document: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class CutPlan:
    """What is cut in a task: names of all scores in the journal, and why some are missing; empty if none is."""

    names: Mapping[CutKey, str]
    failure: str = ""


class KnockoutLoop:
    """Cuts attention for some documents of tasks that ask for it; the processes of a run share them."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions, answering: AnswerLoop) -> None:
        self._loaded, self._run, self._options, self._answering = loaded, run, options, answering

    def cut(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Cut attention for the documents of each task whose scores the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or not options.knockout:
                continue
            with self._run.stage(f"knockout {task}", self._options.device):
                cuts = cuts_of(self._loaded, every=options.every)
                conditions: list[Condition] = ["own", *cuts]
                chosen = {
                    request.row["document"]: request
                    for request in (replace(group[0], index=index) for index in content.patched_rows)
                }
                names = {
                    document: {CutKey(document, condition): _name(request, condition) for condition in conditions}
                    for document, request in chosen.items()
                }
                failure = ""
                try:
                    self._cut_task(chosen, cuts, names, journal)
                except Exception as error:
                    logger.warning(f"{task}: attention was not cut for all documents: {one_line(error)}")
                    failure = one_line(error)
                every = {key: name for each in names.values() for key, name in each.items()}
                self._run.cut[task] = CutPlan(every, failure)

    def _cut_task(
        self,
        chosen: Mapping[str, TaskRequest],
        cuts: Sequence[Cut],
        names: Mapping[str, Mapping[CutKey, str]],
        journal: Journal,
    ) -> None:
        task = next(iter(chosen.values())).task
        answer_documents(
            f"{task}: knockout",
            names,
            journal,
            self._options,
            read=lambda document: self._answering.prepare(chosen[document]),
            weigh=lambda item: workload(item.visual),
            answer=lambda batch: _cut_batch(self._loaded, batch, cuts),
        )


def _cut_batch(loaded: LoadedModel, batch: Sequence[PreparedRequest], cuts: Sequence[Cut]) -> list[dict[CutKey, Reply]]:
    first = batch[0]
    assert first.labels is not None, "patching tasks score labels"
    question, visuals = str(first.question), [item.visual for item in batch]
    own = loaded.generate([question] * len(batch), visuals, max_new_tokens=0, labels=first.labels)
    scores: dict[Condition, list[tuple[float, ...]]] = {"own": [tuple(generation.scores or ()) for generation in own]}
    scores.update(knock_out(loaded, question, visuals, first.labels, cuts).items())
    documents = [item.request.row["document"] for item in batch]
    return [
        {CutKey(document, condition): Reply("", rows[index]) for condition, rows in scores.items()}
        for index, document in enumerate(documents)
    ]


def _name(request: TaskRequest, condition: Condition) -> str:
    content = request.content
    assert content is not None, "only tasks of this package cut attention"
    what = condition if isinstance(condition, str) else astuple(condition)
    parts = (
        *("cut", answering_name(request.task), request.row["document"], what),
        *(content.question(request.row).text, content.data.fingerprint),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
