"""Ask the anchors of a run's tasks after their documents; the answers go to the same journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loguru import logger

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.probes.anchors import NO_WORDINGS
from medmllm_plugins.prompts.anchor_prompts import AnchorItem
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.runtime.answer_loop import AnswerOptions, cut, longest_answer, stop_words, workload
from medmllm_plugins.runtime.batches import Batches, BatchSize
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import TaskRequest, by_task
from medmllm_plugins.utils.progress import Progress

Read = tuple[AnchorItem, VisualInput | None]


class AnchorLoop:
    """Asks the anchors of tasks that have some; the processes of a run share them."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions) -> None:
        self._loaded, self._run, self._options = loaded, run, options

    def answer(self, requests: Sequence[TaskRequest], journal: Journal) -> None:
        """Answer the anchors of each task that the journal does not hold, and tell the run under which names they are.

        Raises:
            ModelError: the model cannot take the images.
        """
        for task, group in by_task(requests).items():
            content = group[0].content
            if content is None or content.predict_only or not content.settings.anchors:
                continue
            with self._run.stage(f"anchors {task}", self._options.device):
                self._answer_task(group[0], content, journal)

    def _answer_task(self, request: TaskRequest, content: TaskContent, journal: Journal) -> None:
        items = content.anchors()
        names = {item.id: request.anchor_name(item) for item in items}
        text = [item for item in items if item.document is None]
        reason = self._why_no_text(text)
        self._run.anchors[content.name] = names, {} if reason is None else {"text": reason}
        own = items[self._options.rank :: self._options.world_size]
        open_items = [item for item in own if names[item.id] not in journal.known]
        if reason is not None:
            logger.info(f"{content.name}: no text anchor: {reason}")
            own, open_items = ([item for item in some if item.document is not None] for some in (own, open_items))
        done = len(own) - len(open_items)
        with Progress(f"{content.name}: anchors", len(own), "questions", done=done) as progress:
            for in_words in (True, False):
                some = [item for item in open_items if (item.document is None) == in_words]
                for batch, replies in self._batches(some, request, content):
                    journal.add({names[item.id]: reply for item, reply in zip(batch, replies, strict=True)})
                    progress.update(len(batch))

    def _why_no_text(self, items: Sequence[AnchorItem]) -> str | None:
        """Return why findings in words cannot be asked about; ``None`` where they can."""
        if not items:
            return NO_WORDINGS
        try:
            self._loaded.prepare_text([items[0].question.text])
        except ModelError as error:
            return str(error)
        return None

    def _batches(self, items: Sequence[AnchorItem], request: TaskRequest, content: TaskContent) -> Any:
        """Answer anchors that all have an image or all have none; yields each batch with its replies."""
        longest = longest_answer(request, self._loaded, self._options)
        stops = stop_words(request)

        def read(item: AnchorItem) -> Read:
            return item, self._visual(item, content)

        def prepare(batch: list[Read]) -> dict[str, Any]:
            questions = [item.question.text for item, _ in batch]
            visuals = [visual for _, visual in batch if visual is not None]
            return self._loaded.prepare(questions, visuals) if visuals else self._loaded.prepare_text(questions)

        def answer(batch: list[Read], inputs: dict[str, Any]) -> list[Reply]:
            questions = [item.question.text for item, _ in batch]
            visuals = [visual for _, visual in batch if visual is not None]
            generations = self._loaded.generate(questions, visuals, max_new_tokens=longest, inputs=inputs)
            return [
                Reply(cut(generation.text, stops), generated_tokens=generation.tokens) for generation in generations
            ]

        size = BatchSize(self._options.batch_size, self._options.max_batch_size)
        ahead = self._loaded.device.type != "cpu"
        batches = Batches(size, read, _weigh, prepare, answer, ahead=ahead)
        for batch, _, replies in batches.run(items):
            yield batch, replies

    def _visual(self, item: AnchorItem, content: TaskContent) -> VisualInput | None:
        if item.document is None:
            return None
        if self._loaded.shows == "volume":
            return content.anchor_volume(item)
        images = content.anchor_images(item)
        if self._loaded.shows == "images":
            return images
        (image,) = images  # the task's own documents were shown as one image
        return image


def _weigh(read: Read) -> float:
    return 0.0 if read[1] is None else workload(read[1])
