"""Put states of a twin into a run's model, and the other way round, while both are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loguru import logger

from medmllm_plugins.errors import OptionError, one_line
from medmllm_plugins.interventions.twin_patching import Answers, PatchSite, check_same_tokens, patch_sites, patch_twins
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, cut, workload
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task

MODEL: Final = "model"
TWIN: Final = "twin"
NO_TWIN: Final = (
    "{task}: expected a second checkpoint to take states from, got none. Name one of the same architecture: "
    "--model_args pretrained=CHECKPOINT,twin=OTHER_CHECKPOINT"
)


@dataclass(frozen=True, slots=True)
class PatchKey:
    """One answer of twin patching.

    Attributes:
        document: id of the document.
        recipient: :data:`MODEL` or :data:`TWIN`, whichever answers.
        site: where the states of the other one are put in; ``None`` for nowhere.
    """

    document: str
    recipient: str
    site: PatchSite | None


class PatchLoop:
    """Patches some documents of tasks that ask for it; the processes of a run share them."""

    def __init__(
        self,
        loaded: LoadedModel,
        load_twin: Callable[[EvaluationRun], LoadedModel] | None,
        run: EvaluationRun,
        options: AnswerOptions,
        answering: AnswerLoop,
    ) -> None:
        """``load_twin`` returns the twin, loaded if it is not yet; ``None`` where there is none."""
        self._loaded, self._load_twin = loaded, load_twin
        self._run, self._options, self._answering = run, options, answering

    def check(self, requests: Sequence[TaskRequest]) -> None:
        """Check that there is a twin that sees the same tokens, before hours are spent on answers.

        Raises:
            OptionError: there is no twin.
            ModelError: the twin cannot be loaded, or sees other tokens.
        """
        for task, group in by_task(requests).items():
            if group[0].needs_twin and self._load_twin is None:
                raise OptionError(NO_TWIN.format(task=task))
            if group[0].patching is None or self._load_twin is None:
                continue
            twin = self._load_twin(self._run)
            first = self._answering.prepare(group[0])
            inputs = [model.prepare([first.question], [first.visual]) for model in (self._loaded, twin)]
            check_same_tokens(*inputs)

    def patch(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Patch the documents of each task whose answers the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or self._load_twin is None:
                continue
            twin = self._load_twin(self._run)
            sites = patch_sites(self._loaded, every=options.every, tokens=options.tokens)
            chosen = [replace(group[0], index=index) for index in content.patched_rows]
            names = {
                PatchKey(request.row["document"], recipient, site): _name(request, recipient, site, twin.fingerprint)
                for request in chosen
                for recipient in (MODEL, TWIN)
                for site in (None, *sites)
            }
            with self._run.stage(f"patch {task}", self._options.device):
                try:
                    self._patch_task(twin, chosen, sites, names, journal)
                    self._run.patched[task] = names, ""
                except Exception as error:
                    logger.warning(f"{task}: not all documents were patched: {one_line(error)}")
                    self._run.patched[task] = names, one_line(error)

    def _patch_task(
        self,
        twin: LoadedModel,
        chosen: Sequence[TaskRequest],
        sites: Sequence[PatchSite],
        names: Mapping[PatchKey, str],
        journal: Journal,
    ) -> None:
        by_document: dict[str, dict[PatchKey, str]] = {}
        for key, name in names.items():
            by_document.setdefault(key.document, {})[key] = name
        requests = {request.row["document"]: request for request in chosen}
        answer_documents(
            f"{chosen[0].task}: patching",
            by_document,
            journal,
            self._options,
            read=lambda document: self._answering.prepare(requests[document]),
            weigh=lambda item: workload(item.visual),
            answer=lambda batch: _patch_batch(self._loaded, twin, batch, sites),
        )


def _patch_batch(
    model: LoadedModel, twin: LoadedModel, batch: Sequence[PreparedRequest], sites: Sequence[PatchSite]
) -> list[dict[PatchKey, Reply]]:
    """Patch a batch of documents in both directions."""
    first = batch[0]
    assert first.labels is not None, "patching tasks score labels"
    sides = patch_twins(
        model,
        twin,
        str(first.question),
        [item.visual for item in batch],
        first.labels,
        sites,
        max_new_tokens=first.max_new_tokens,
    )
    replies: list[dict[PatchKey, Reply]] = [{} for _ in batch]
    for recipient, answers in zip((MODEL, TWIN), sides, strict=True):
        _add_replies(replies, recipient, answers, batch)
    return replies


def _add_replies(
    replies: list[dict[PatchKey, Reply]], recipient: str, answers: Answers, batch: Sequence[PreparedRequest]
) -> None:
    for site, by_document in answers.items():
        for item, answer, known in zip(batch, by_document, replies, strict=True):
            key = PatchKey(item.request.row["document"], recipient, site)
            known[key] = Reply(cut(answer.text, item.until), answer.scores)


def _name(request: TaskRequest, recipient: str, site: PatchSite | None, twin: str) -> str:
    content = request.content
    assert content is not None, "only tasks of this package are patched"
    parts = (
        *("patched", answering_name(request.task), request.row["document"], content.question(request.row).text),
        *(content.data.fingerprint, sorted(request.generation.items()), recipient, site and site.name, twin),
    )
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
