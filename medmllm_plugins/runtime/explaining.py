"""Compute attributions of some of the answers of a run, while the model is still loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from loguru import logger

from medmllm_plugins.errors import one_line
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import ATTRIBUTIONS
from medmllm_plugins.results.manifest import ExplanationEntry
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.requests import RequestKey, TaskRequest, by_task

if TYPE_CHECKING:
    from medmllm_plugins.attribution.attribution_store import AttributionStore

ROWS_AT_AUTO: Final = 8
"""Rows that attribution methods take together where the batch size is "auto": gradients need room too."""


class AttributionLoop:
    """Explains the answers of tasks that ask for attributions."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions, answering: AnswerLoop) -> None:
        self._loaded, self._run, self._options, self._answering = loaded, run, options, answering

    def check(self, requests: Sequence[TaskRequest]) -> None:
        """Check the methods and layers that tasks ask for, before hours are spent on answers.

        Raises:
            OptionError: the model does not have such a method or layer.
        """
        for group in by_task(requests).values():
            if (attributions := group[0].attributions) is not None:
                from medmllm_plugins.attribution.explainer import resolve_methods

                first = self._answering.prepare(group[0])
                resolve_methods(self._loaded, attributions, first.question, first.visual)

    def explain(self, requests: Sequence[TaskRequest], replies: Mapping[RequestKey, Reply]) -> None:
        """Explain some answers of each task that asks for it.

        A failure is logged and noted in the store: the answers cost hours, and are scored whatever happens here.
        """
        for task, group in by_task(requests).items():
            content, attributions = group[0].content, group[0].attributions
            if content is None or attributions is None:
                continue
            with self._run.stage(f"explain {task}", self._options.device):
                store = self._store(content, attributions)
                try:
                    self._explain_task(content, attributions, group, replies, store)
                except Exception as error:
                    logger.warning(f"{task}: no attributions: {one_line(error)}")
                    store.fail(one_line(error))

    def _explain_task(
        self,
        content: TaskContent,
        attributions: AttributionOptions,
        requests: Sequence[TaskRequest],
        replies: Mapping[RequestKey, Reply],
        store: AttributionStore,
    ) -> None:
        """Explain this process's share of the documents, some answered correctly and some not."""
        from medmllm_plugins.attribution.attribution_item import AttributionItem
        from medmllm_plugins.attribution.document_sample import sample_by_class
        from medmllm_plugins.attribution.explainer import explain

        by_id = {str(request.row["id"]): request for request in requests}
        answered = []
        for name, request in by_id.items():
            label = str(request.row["label"])
            predicted = content.read_answer(request.row, replies[request.key].text).label
            answered.append((name, label, predicted == label))
        rank, world_size = self._options.rank, self._options.world_size
        share = attributions.n // world_size + (rank < attributions.n % world_size)
        items = []
        for name in sample_by_class(answered, share) if share else []:
            request = by_id[name]
            row, reply, visual = request.row, replies[request.key], self._answering.prepare(request).visual
            mask = content.readable_lesion_mask(row)
            items.append(AttributionItem.from_row(row, content.question(row), visual, reply.text, reply.scores, mask))
        if items:
            size = self._options.batch_size
            rows = size if isinstance(size, int) else ROWS_AT_AUTO
            explain(self._loaded, attributions, items, store, rows, self._log)
            self._run.task(content.name, explanations=ExplanationEntry(documents=len(items)))

    def _store(self, content: TaskContent, attributions: AttributionOptions) -> AttributionStore:
        """Return the store of this process's attributions of a task."""
        from medmllm_plugins.attribution.attribution_store import AttributionStore

        settings = {**attributions.to_dict(), "task": content.metadata, "model": self._loaded.fingerprint}
        return AttributionStore(self._run.folder_of(ATTRIBUTIONS, content.name), settings, str(self._options.rank))

    def _log(self, line: str) -> None:
        if self._options.rank == 0:
            logger.info(line)
