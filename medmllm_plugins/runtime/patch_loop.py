"""Put states of a twin into a run's model, and the other way round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from loguru import logger

from medmllm_plugins.errors import OptionError, one_line
from medmllm_plugins.interventions.twin_patching import (
    MODEL,
    TWIN,
    PatchSite,
    check_same_tokens,
    patch_sites,
    patch_twins,
)
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions, PreparedRequest, workload
from medmllm_plugins.runtime.document_loop import answer_documents
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.patch_replies import PatchKey, patch_replies
from medmllm_plugins.runtime.requests import TaskRequest, by_task
from medmllm_plugins.runtime.twin import Twin
from medmllm_plugins.runtime.twin_turns import patch_in_turn

NO_TWIN: Final = (
    "{task}: expected a second checkpoint to take states from, got none. Name one of the same architecture: "
    "--model_args pretrained=CHECKPOINT,twin=OTHER_CHECKPOINT"
)


class PatchLoop:
    """Patches some documents of tasks that ask for it; the processes of a run share them."""

    def __init__(
        self,
        loaded: LoadedModel,
        twin: Twin | None,
        run: EvaluationRun,
        options: AnswerOptions,
        answering: AnswerLoop,
    ) -> None:
        self._loaded, self._twin = loaded, twin
        self._run, self._options, self._answering = run, options, answering

    def check(self, requests: Sequence[TaskRequest]) -> None:
        """Check that there is a twin that sees the same tokens, before hours are spent on answers.

        Raises:
            OptionError: there is no twin.
            ModelError: the twin cannot be loaded, or sees other tokens.
        """
        for task, group in by_task(requests).items():
            if group[0].needs_twin and self._twin is None:
                raise OptionError(NO_TWIN.format(task=task))
            if group[0].patching is None or self._twin is None:
                continue
            first = self._answering.prepare(group[0])
            inputs = [self._loaded.prepare([first.question], [first.visual])]
            with self._twin.loaded(self._run, self._loaded) as twin:
                inputs.append(twin.prepare([first.question], [first.visual]))
            check_same_tokens(*inputs)

    def patch(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Patch the documents of each task whose answers the journal does not hold.

        A failure is logged and noted: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, options = group[0].content, group[0].patching
            if content is None or options is None or self._twin is None:
                continue
            sites = patch_sites(self._loaded, every=options.every, tokens=options.tokens)
            chosen = [replace(group[0], index=index) for index in content.patched_rows]
            names = {
                PatchKey(request.row["document"], recipient, site): _name(request, recipient, site, self._twin)
                for request in chosen
                for recipient in (MODEL, TWIN)
                for site in (None, *sites)
            }
            with self._run.stage(f"patch {task}", self._options.device):
                try:
                    self._patch_task(self._twin, chosen, sites, names, journal)
                    self._run.patched[task] = names, ""
                except Exception as error:
                    logger.warning(f"{task}: not all documents were patched: {one_line(error)}")
                    self._run.patched[task] = names, one_line(error)

    def _patch_task(
        self,
        twin: Twin,
        chosen: Sequence[TaskRequest],
        sites: Sequence[PatchSite],
        names: Mapping[PatchKey, str],
        journal: Journal,
    ) -> None:
        by_document: dict[str, dict[PatchKey, str]] = {}
        for key, name in names.items():
            by_document.setdefault(key.document, {})[key] = name
        requests = {request.row["document"]: request for request in chosen}

        def read(document: str) -> PreparedRequest:
            return self._answering.prepare(requests[document])

        title = f"{chosen[0].task}: patching"
        if not twin.in_turn:
            with twin.loaded(self._run, self._loaded) as other:
                answer_documents(
                    title,
                    by_document,
                    journal,
                    self._options,
                    read=read,
                    weigh=lambda item: workload(item.visual),
                    answer=lambda batch: _patch_batch(self._loaded, other, batch, sites),
                )
            return
        patch_in_turn(self._loaded, twin, self._run, self._options, journal, title, by_document, read, sites)


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
    own, of_twin = (
        patch_replies(recipient, answers, batch) for recipient, answers in zip((MODEL, TWIN), sides, strict=True)
    )
    return [{**mine, **theirs} for mine, theirs in zip(own, of_twin, strict=True)]


def _name(request: TaskRequest, recipient: str, site: PatchSite | None, twin: Twin) -> str:
    content = request.content
    assert content is not None, "only tasks of this package are patched"
    parts = (
        *("patched", answering_name(request.task), request.row["document"], content.question(request.row).text),
        *(
            content.data.fingerprint,
            sorted(request.generation.items()),
            recipient,
            site and site.name,
            twin.fingerprint,
        ),
    )
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
