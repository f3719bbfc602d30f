"""Run plugins' interventions on a run's model, while it is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from loguru import logger

from medmllm_plugins.errors import PluginError, one_line
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, workload
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task
from medmllm_plugins.utils.import_by_name import import_by_name

OWN = ""
"""The condition of the model as it is, which no plugin may name."""
Intervene: TypeAlias = Callable[
    [LoadedModel, str, Sequence[VisualInput], Sequence[str], int], Mapping[str, Sequence[Sequence[float]]]
]
"""A plugin's function: model, question, images, labels and blocks between sites, to label scores by condition."""


@dataclass(frozen=True, slots=True)
class InterventionKey:
    """The scores of one document under all conditions of an intervention; of the model as it is, without a name."""

    document: str
    name: str


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """Names of all scores in the journal, and why some are missing; empty if none is."""

    names: Mapping[InterventionKey, str]
    failure: str = ""


class InterventionLoop:
    """Runs the interventions of tasks that ask for some; the processes of a run share the documents."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions, answering: AnswerLoop) -> None:
        self._loaded, self._run, self._options, self._answering = loaded, run, options, answering

    def intervene(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Intervene on the documents of each task whose scores the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or not options.interventions:
                continue
            with self._run.stage(f"interventions {task}", self._options.device):
                chosen = {
                    request.row["document"]: request
                    for request in (replace(group[0], index=index) for index in content.patched_rows)
                }
                names = {
                    document: {
                        InterventionKey(document, name): _name(request, name, options.every)
                        for name in (OWN, *options.interventions)
                    }
                    for document, request in chosen.items()
                }
                failure = ""
                try:
                    self._intervene_in_task(task, chosen, options.interventions, options.every, names, journal)
                except Exception as error:
                    logger.warning(f"{task}: not all interventions were made: {one_line(error)}")
                    failure = one_line(error)
                every = {key: name for each in names.values() for key, name in each.items()}
                self._run.intervened[task] = InterventionPlan(every, failure)

    def _intervene_in_task(
        self,
        task: str,
        chosen: Mapping[str, TaskRequest],
        interventions: Sequence[str],
        every: int,
        names: Mapping[str, Mapping[InterventionKey, str]],
        journal: Journal,
    ) -> None:
        declared = get_manager().interventions()
        functions = {name: import_by_name(declared[name].target, PluginError) for name in interventions}
        answer_documents(
            f"{task}: interventions",
            names,
            journal,
            self._options,
            read=lambda document: self._answering.prepare(chosen[document]),
            weigh=lambda item: workload(item.visual),
            answer=lambda batch: _intervene_in_batch(self._loaded, batch, functions, every),
        )


def _intervene_in_batch(
    loaded: LoadedModel, batch: Sequence[PreparedRequest], functions: Mapping[str, Intervene], every: int
) -> list[dict[InterventionKey, Reply]]:
    first = batch[0]
    assert first.labels is not None, "patching tasks score labels"
    question, visuals = str(first.question), [item.visual for item in batch]
    own = loaded.generate([question] * len(batch), visuals, max_new_tokens=0, labels=first.labels)
    by_name: dict[str, Mapping[str, Sequence[Sequence[float]]]] = {
        OWN: {OWN: [generation.scores or () for generation in own]}
    }
    for name, function in functions.items():
        scores = function(loaded, question, visuals, first.labels, every)
        by_name[name] = check_scores(name, scores, len(batch), len(first.labels))
    documents = [item.request.row["document"] for item in batch]
    return [
        {
            InterventionKey(document, name): Reply(
                json.dumps({condition: [float(score) for score in rows[index]] for condition, rows in scores.items()})
            )
            for name, scores in by_name.items()
        }
        for index, document in enumerate(documents)
    ]


def check_scores(name: str, scores: Any, documents: int, labels: int) -> Mapping[str, Sequence[Sequence[float]]]:
    """Check what a plugin's function returned.

    Raises:
        PluginError: it is no mapping from names of conditions to finite scores of all labels for all documents.
    """
    wanted = f"Intervention {name}: expected label scores by condition, {documents} rows of {labels} finite numbers"
    if not isinstance(scores, Mapping) or not scores:
        raise PluginError(f"{wanted}, got {type(scores).__name__}{' without any' if scores == {} else ''}.")
    for condition, rows in scores.items():
        if not isinstance(condition, str) or condition == OWN:
            raise PluginError(f"{wanted}, got a condition called {condition!r}. Give it a name.")
        shape = [len(row) for row in rows]
        if shape != [labels] * documents or not all(math.isfinite(score) for row in rows for score in row):
            raise PluginError(f"{wanted}, got rows of {sorted(set(shape))} for {condition!r}, {len(shape)} in all.")
    return scores


def _name(request: TaskRequest, intervention: str, every: int) -> str:
    content = request.content
    assert content is not None, "only tasks of this package have interventions"
    parts = (
        *("intervened", answering_name(request.task), request.row["document"], intervention, every),
        *(content.question(request.row).text, content.data.fingerprint),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
