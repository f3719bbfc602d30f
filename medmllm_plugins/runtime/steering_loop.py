"""Push states of a run's model along directions of probes, while it is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from loguru import logger

from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.interventions.steering import (
    ProbeDirections,
    Push,
    PushedAnswer,
    fit_directions,
    pooled_states,
    pushes_at,
    steer,
    steering_sites,
)
from medmllm_plugins.interventions.twin_patching import PatchSite
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.prompts.anchor_prompts import sample_documents
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, cut, workload
from medmllm_plugins.runtime.batches import Batches, BatchSize
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task

TRAIN_DOCUMENTS: Final = 100
"""Documents of each class of the train fold that probes are fitted on."""
Condition = Push | Literal["own"]
"""A push; ``own`` for the model as it is."""


@dataclass(frozen=True, slots=True)
class PushKey:
    """The answer about one document."""

    document: str
    condition: Condition


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """What is pushed in a task.

    Attributes:
        names: names of all answers in the journal.
        targets: by document, the class toward which it is pushed.
        probes: the probes by site.
        train_documents: documents that these are fitted on.
        failure: why some answers are missing; empty if none is.
    """

    names: Mapping[PushKey, str]
    targets: Mapping[str, int]
    probes: Mapping[PatchSite, ProbeDirections]
    train_documents: int = 0
    failure: str = ""


class SteeringLoop:
    """Pushes states of some documents of tasks that ask for it; the processes of a run share them."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions, answering: AnswerLoop) -> None:
        self._loaded, self._run, self._options, self._answering = loaded, run, options, answering

    def steer(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Push states of the documents of each task whose answers the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or not options.steering:
                continue
            with self._run.stage(f"steering {task}", self._options.device):
                sites = steering_sites(self._loaded, every=options.every)
                chosen = {
                    request.row["document"]: request
                    for request in (replace(group[0], index=index) for index in content.patched_rows)
                }
                classes = list(content.question(content.row_list[0]).classes)
                pairs = _pairs(chosen, classes)
                conditions: list[Condition] = ["own", *pushes_at(sites)]
                names = {
                    document: {
                        PushKey(document, condition): _name(request, condition, pairs[document])
                        for condition in conditions
                    }
                    for document, request in chosen.items()
                }
                every = {key: name for each in names.values() for key, name in each.items()}
                plan = SteeringPlan(every, {document: target for document, (_, target) in pairs.items()}, {})
                try:
                    probes, count = self._fit(content, sites, classes)
                    plan = replace(plan, probes=probes, train_documents=count)
                    self._steer_task(chosen, pairs, plan, names, journal)
                except Exception as error:
                    logger.warning(f"{task}: states of some documents were not pushed: {one_line(error)}")
                    plan = replace(plan, failure=one_line(error))
                self._run.steered[task] = plan

    def _fit(
        self, content: TaskContent, sites: Sequence[PatchSite], classes: Sequence[str]
    ) -> tuple[dict[PatchSite, ProbeDirections], int]:
        """Fit the probe of each site on documents of the train fold.

        Raises:
            DataError: the train fold has no documents of two classes.
        """
        settings = replace(content.settings, folds=("train",))
        train = TaskContent(content.name, settings, content.data)
        finding = settings.finding or None
        documents = [train.document(row) for row in train.row_list]
        names = {item.id for item in sample_documents(documents, finding, TRAIN_DOCUMENTS * len(classes))}
        rows = [row for row in train.row_list if row["document"] in names]
        if len({row["label"] for row in rows}) < 2:
            raise DataError("expected documents of two classes in the train fold, to fit the probes on")
        question = train.question(rows[0]).text
        pooled: dict[str, dict[PatchSite, object]] = {}
        loaded = self._loaded

        def read(index: int) -> tuple[int, VisualInput]:
            if loaded.shows == "volume":
                return index, train.volume(rows[index])
            images = train.images(rows[index])
            return index, images if loaded.shows == "images" else images[0]

        def record(batch: list[tuple[int, VisualInput]], _: None) -> list[dict[PatchSite, object]]:
            states = pooled_states(loaded, question, [visual for _, visual in batch], sites)
            return [{site: values[position] for site, values in states.items()} for position in range(len(batch))]

        size = BatchSize(self._options.batch_size, self._options.max_batch_size)
        batches = Batches(size, read, lambda item: workload(item[1]), lambda _: None, record, ahead=False)
        for batch, _, states in batches.run(list(range(len(rows)))):
            for index, each in zip(batch, states, strict=True):
                pooled[rows[index]["document"]] = each
        truth = np.array([classes.index(row["label"]) for row in rows], dtype=np.intp)
        group = np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
        return {
            site: fit_directions(np.array([pooled[row["document"]][site] for row in rows]), truth, group, len(classes))
            for site in sites
        }, len(rows)

    def _steer_task(
        self,
        chosen: Mapping[str, TaskRequest],
        pairs: Mapping[str, tuple[int, int]],
        plan: SteeringPlan,
        names: Mapping[str, Mapping[PushKey, str]],
        journal: Journal,
    ) -> None:
        pushes = [key.condition for key in next(iter(names.values())) if isinstance(key.condition, Push)]

        def answer(batch: Sequence[PreparedRequest]) -> list[dict[PushKey, Reply]]:
            first = batch[0]
            assert first.labels is not None, "patching tasks score labels"
            documents = [item.request.row["document"] for item in batch]
            answers = steer(
                self._loaded,
                str(first.question),
                [item.visual for item in batch],
                first.labels,
                pushes,
                plan.probes,
                [pairs[document] for document in documents],
                seeds=[_seed(document) for document in documents],
                max_new_tokens=first.max_new_tokens,
            )
            return [
                {
                    PushKey(document, condition): _reply(rows[index], batch[index].until)
                    for condition, rows in answers.items()
                }
                for index, document in enumerate(documents)
            ]

        answer_documents(
            f"{next(iter(chosen.values())).task}: steering",
            names,
            journal,
            self._options,
            read=lambda document: self._answering.prepare(chosen[document]),
            weigh=lambda item: workload(item.visual),
            answer=answer,
        )


def _reply(answer: PushedAnswer, until: Sequence[str]) -> Reply:
    surprise = None if math.isnan(answer.surprise) else answer.surprise
    return Reply(json.dumps([cut(answer.text, until), surprise]), answer.scores)


def pushed_answer(reply: Reply) -> PushedAnswer:
    """Read an answer from the journal."""
    text, surprise = json.loads(reply.text)
    return PushedAnswer(text, reply.scores or (), math.nan if surprise is None else surprise)


def _pairs(chosen: Mapping[str, TaskRequest], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the class of each document and the one toward which it is pushed: all others in turn."""
    pairs, turns = {}, dict.fromkeys(range(len(classes)), 0)
    for document, request in chosen.items():
        own = classes.index(request.row["label"])
        pairs[document] = own, (own + 1 + turns[own] % (len(classes) - 1)) % len(classes)
        turns[own] += 1
    return pairs


def _name(request: TaskRequest, condition: Condition, pair: tuple[int, int]) -> str:
    content = request.content
    assert content is not None, "only tasks of this package push states"
    what = condition if isinstance(condition, str) else (condition.site.name, condition.direction, condition.dose)
    parts = (
        *("pushed answers", answering_name(request.task), request.row["document"], pair, what),
        *(content.question(request.row).text, content.data.fingerprint),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _seed(document: str) -> int:
    return int(hashlib.sha256(document.encode()).hexdigest()[:8], 16)
