"""Put states of other documents into a run's model, while it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from loguru import logger

from medmllm_plugins.errors import one_line
from medmllm_plugins.interventions.interchange import (
    DonorClass,
    Exchange,
    exchanges_at,
    interchange,
    interchange_sites,
)
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, workload
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task

OWN: Final = "own"
CLEAN: Final[tuple[Literal["own"] | DonorClass, ...]] = (OWN, "other class", "same class")
"""Scores without an exchange: of the document, and of its donors."""


@dataclass(frozen=True, slots=True)
class ExchangeKey:
    """Scores of one document after an exchange, or one of :data:`CLEAN`."""

    document: str
    condition: Exchange | str


@dataclass(frozen=True, slots=True)
class Donors:
    """The ids of a document's donors: of another class and of its own, both of other groups."""

    other: str
    same: str


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """What is exchanged in a task.

    Attributes:
        donors: by document.
        left_out: documents without donors that give as many image tokens.
        names: names of all scores in the journal.
        failure: why some are missing; empty if none is.
    """

    donors: Mapping[str, Donors]
    left_out: int
    names: Mapping[ExchangeKey, str]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A document with its donors, all read."""

    own: PreparedRequest
    other: PreparedRequest
    same: PreparedRequest


class InterchangeLoop:
    """Exchanges states between documents of tasks that ask for it; the processes of a run share them."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions, answering: AnswerLoop) -> None:
        self._loaded, self._run, self._options, self._answering = loaded, run, options, answering

    def exchange(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Exchange states between the documents of each task whose scores the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or not options.interchange:
                continue
            with self._run.stage(f"interchange {task}", self._options.device):
                exchanges = exchanges_at(interchange_sites(self._loaded, every=options.every))
                chosen = [replace(group[0], index=index) for index in content.patched_rows]
                prepared = {request.row["document"]: self._answering.prepare(request) for request in chosen}
                plan = _plan(prepared, {name: self._grid(item) for name, item in prepared.items()}, exchanges)
                try:
                    self._exchange_task(task, prepared, plan, exchanges, journal)
                except Exception as error:
                    logger.warning(f"{task}: states were not exchanged between all documents: {one_line(error)}")
                    plan = replace(plan, failure=one_line(error))
                self._run.exchanged[task] = plan

    def _grid(self, item: PreparedRequest) -> object:
        """Return what two documents need in common for the tokens of their prompts to stand for the same places."""
        inputs = self._loaded.prepare([item.question], [item.visual])
        return tuple(inputs["input_ids"].shape), self._loaded.family.grid_key(inputs)

    def _exchange_task(
        self,
        task: str,
        prepared: Mapping[str, PreparedRequest],
        plan: ExchangePlan,
        exchanges: Sequence[Exchange],
        journal: Journal,
    ) -> None:
        names = {document: {key: plan.names[key] for key in _keys(document, exchanges)} for document in plan.donors}

        def read(document: str) -> _Pair:
            donors = plan.donors[document]
            return _Pair(prepared[document], prepared[donors.other], prepared[donors.same])

        answer_documents(
            f"{task}: interchange",
            names,
            journal,
            self._options,
            read=read,
            weigh=lambda pair: workload(pair.own.visual),
            answer=lambda batch: _exchange_batch(self._loaded, batch, exchanges),
        )


def _keys(document: str, exchanges: Sequence[Exchange]) -> list[ExchangeKey]:
    return [ExchangeKey(document, condition) for condition in (*CLEAN, *exchanges)]


def _plan(
    prepared: Mapping[str, PreparedRequest], grids: Mapping[str, object], exchanges: Sequence[Exchange]
) -> ExchangePlan:
    """Choose donors for each document among those whose image has the same grid of tokens."""
    donors: dict[str, Donors] = {}
    for document, item in prepared.items():
        row = item.request.row
        likely = sorted(
            (
                other
                for other, its in prepared.items()
                if its.request.row["group"] != row["group"] and grids[other] == grids[document]
            ),
            key=lambda other: _mixed(f"{document} {other}"),
        )
        of_other = [other for other in likely if prepared[other].request.row["label"] != row["label"]]
        of_same = [other for other in likely if prepared[other].request.row["label"] == row["label"]]
        if of_other and of_same:
            donors[document] = Donors(of_other[0], of_same[0])
    names = {
        key: _name(prepared[document].request, donors[document], key.condition)
        for document in donors
        for key in _keys(document, exchanges)
    }
    return ExchangePlan(donors, len(prepared) - len(donors), names)


def _exchange_batch(
    loaded: LoadedModel, batch: Sequence[_Pair], exchanges: Sequence[Exchange]
) -> list[dict[ExchangeKey, Reply]]:
    first = batch[0].own
    assert first.labels is not None, "patching tasks score labels"
    shown: dict[DonorClass, list[object]] = {
        "other class": [pair.other.visual for pair in batch],
        "same class": [pair.same.visual for pair in batch],
    }
    documents = [pair.own.request.row["document"] for pair in batch]
    scores = interchange(
        loaded,
        str(first.question),
        [pair.own.visual for pair in batch],
        shown,  # type: ignore[arg-type]
        first.labels,
        exchanges,
        seeds=[int(_mixed(document)[:8], 16) for document in documents],
    )
    return [
        {ExchangeKey(document, condition): Reply("", scores[condition][index]) for condition in (*CLEAN, *exchanges)}
        for index, document in enumerate(documents)
    ]


def _name(request: TaskRequest, donors: Donors, condition: Exchange | str) -> str:
    content = request.content
    assert content is not None, "only tasks of this package exchange states"
    what = condition if isinstance(condition, str) else (condition.site.name, condition.donor)
    parts = (
        *("exchanged", answering_name(request.task), request.row["document"], donors.other, donors.same, what),
        *(content.question(request.row).text, content.data.fingerprint),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _mixed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
