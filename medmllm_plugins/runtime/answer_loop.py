"""Answer the requests of a run: known answers from the journal, the others in batches, each stored as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from loguru import logger
from PIL import Image

from medmllm_plugins.data.core.image_controls import GREY
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.features.store import stored_ids
from medmllm_plugins.models.base import FewShotPrompt, LoadedModel, Question, VisualInput
from medmllm_plugins.results.feature_store import Header
from medmllm_plugins.results.file_names import FEATURES
from medmllm_plugins.runtime.batches import AUTO, Batches, BatchSize
from medmllm_plugins.runtime.chat_messages import read_messages
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.requests import Needs, RequestKey, TaskRequest, by_task, masked_requests
from medmllm_plugins.utils.progress import Progress

DEFAULT_NEW_TOKENS: Final = 64
BLANK_IMAGE: Final = Image.new("RGB", (336, 336), GREY)
"""The image for label scores without content; of one size, so that all processes agree."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How a model answers.

    Attributes:
        device: of the model, for memory statistics.
        batch_size: documents in a batch, or ``"auto"``.
        max_batch_size: the largest batch that ``"auto"`` tries.
        max_new_tokens: longest answer; ``None`` for what the model, else the task, asks for.
    """

    model: str
    device: str = "cpu"
    batch_size: int | str = AUTO
    max_batch_size: int = 1
    max_new_tokens: int | None = None
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its question and images read, as the model needs it.

    Attributes:
        controls: the control features of the image by layer; ``None`` where no features are recorded.
    """

    request: TaskRequest
    question: Question
    visual: VisualInput
    max_new_tokens: int
    until: tuple[str, ...]
    labels: tuple[str, ...] | None
    controls: Mapping[str, npt.NDArray[np.float16]] | None


class AnswerLoop:
    """Answers requests with one loaded model, for one run."""

    def __init__(self, loaded: LoadedModel, run: EvaluationRun, options: AnswerOptions) -> None:
        self._loaded, self._run, self._options = loaded, run, options
        self._blank_scores: dict[tuple[Question, tuple[str, ...]], tuple[float, ...] | None] = {}

    def answer(self, requests: Sequence[TaskRequest], journal: Journal) -> dict[RequestKey, Reply]:
        """Answer all requests that the journal does not hold, and those about masked images that they bring with them.

        The new answers are added to the journal. Clones of a request are answered once.

        Raises:
            ModelError: a request has not exactly one image, or is too long for the model.
        """
        unique = {request.key: request for request in requests}
        unique |= {request.key: request for request in masked_requests(tuple(unique.values()))}
        answers = self._stored_answers(unique, journal)
        if answers:
            self._run.note(answers_of_an_earlier_start=len(answers))
            logger.info(
                f"{self._options.model}: {len(answers)} of {len(unique)} answers are there from an earlier start."
            )
        open_requests = [request for key, request in unique.items() if key not in answers]
        shown = self._options.rank == 0
        with Progress(self._options.model, len(unique), done=len(answers), shown=shown) as progress:
            unparsed = 0
            for task, group in by_task(open_requests).items():
                with self._run.stage(f"answer {task}", self._options.device):
                    for batch in self._answer_task(task, group, journal):
                        answers |= {request.key: reply for request, reply in batch}
                        unparsed += sum(not request.is_parsed(reply.text) for request, reply in batch)
                        progress.note = f"unparsed={unparsed}"
                        progress.update(len(batch))
        return answers

    def _stored_answers(self, requests: Mapping[RequestKey, TaskRequest], journal: Journal) -> dict[RequestKey, Reply]:
        """Return the answers in the journal, without those whose features did not reach the disk."""
        recorded = {
            task: stored_ids(self._run.folder_of(FEATURES, task))
            for task in {request.task for request in requests.values() if request.features is not None}
        }
        answers = {}
        for key, request in requests.items():
            if request.content is None or (reply := journal.known.get(request.stored_name())) is None:
                continue
            ids = recorded.get(request.task)
            if ids is None or request.row["id"] in ids:
                answers[key] = reply
        return answers

    def _answer_task(
        self, task: str, requests: Sequence[TaskRequest], journal: Journal
    ) -> Iterator[list[tuple[TaskRequest, Reply]]]:
        """Answer the requests of one task, recording features where it asks for them; yields each batch."""
        with self._recording(task, requests) as recorder:
            writer = _JournalWriter(journal, recorder)
            prompts: dict[str, str] = {}
            for prepared, replies in self._batches(requests, recorder):
                known = len(prompts)
                for item in prepared:
                    if item.request.way not in prompts:
                        prompts[item.request.way] = self._loaded.render(item.question)
                if len(prompts) > known:
                    several = dict(prompts) if len(prompts) > 1 else {}
                    self._run.task(task, prompt=next(iter(prompts.values())), prompts=several)
                batch = [(item.request, reply) for item, reply in zip(prepared, replies, strict=True)]
                for request, reply in batch:
                    if request.content is not None:
                        writer.add(request, reply)
                writer.flush()
                yield batch
            writer.close()

    @contextmanager
    def _recording(self, task: str, requests: Sequence[TaskRequest]) -> Iterator[FeatureRecorder | None]:
        """Record the features of a task, where it asks for them."""
        content, features = requests[0].content, requests[0].features
        if content is None or features is None:
            yield None
            return
        header = Header(
            task=task,
            dataset=content.settings.dataset.name,
            labels=content.rows.classes,
            dataset_fingerprint=content.data.fingerprint,
            model=self._options.model,
            model_fingerprint=self._loaded.fingerprint,
            layers=(),
        )
        first = self.prepare(requests[0])
        example = self._loaded.prepare([first.question], [first.visual])
        folder = self._run.folder_of(FEATURES, task)
        recorder = FeatureRecorder(self._loaded, features, header, folder, self._options.rank, example)
        try:
            yield recorder
        finally:
            recorder.close()

    def _batches(
        self, requests: Sequence[TaskRequest], recorder: FeatureRecorder | None
    ) -> Iterator[tuple[list[PreparedRequest], list[Reply]]]:
        """Answer in batches of one split, generation setting and set of labels; see :class:`Batches`."""
        groups: dict[tuple[str, str, Needs, tuple[str, ...] | None], list[TaskRequest]] = {}
        for request in requests:
            # Masked images share no batch with others, so that with and without them all answers are the same.
            kind = (request.split, repr(sorted(request.generation.items())), request.needs, request.labels)
            groups.setdefault(kind, []).append(request)
        size = BatchSize(self._options.batch_size, self._options.max_batch_size)

        def prepare(batch: list[PreparedRequest]) -> dict[str, Any]:
            return self._loaded.prepare([item.question for item in batch], [item.visual for item in batch])

        def answer(batch: list[PreparedRequest], inputs: dict[str, Any]) -> list[Reply]:
            return self._answer_batch(batch, inputs, recorder)

        prepare_ahead = self._loaded.device.type != "cpu"
        batches = Batches(size, self.prepare, lambda item: workload(item.visual), prepare, answer, ahead=prepare_ahead)
        for group in groups.values():
            for _, prepared, replies in batches.run(group):
                yield prepared, replies

    def prepare(self, request: TaskRequest) -> PreparedRequest:
        """Read the question and the images of a request.

        Raises:
            ModelError: the model takes other images than the request has.
        """
        question, visual = self._question_and_visual(request)
        is_answered = request.needs == "answer"
        return PreparedRequest(
            request=request,
            question=question,
            visual=visual,
            max_new_tokens=longest_answer(request, self._loaded, self._options) if is_answered else 0,
            until=stop_words(request),
            labels=request.labels,
            controls=None if request.features is None else control_features(visual),
        )

    def _question_and_visual(self, request: TaskRequest) -> tuple[Question, VisualInput]:
        shows, model, source = self._loaded.shows, self._options.model, f"{request.task}, document {request.index}"
        if shows == "volume" and request.content is not None:
            # A model of volumes gets the volume itself, not the images that other models are shown.
            return request.content.question(request.row).text, request.content.volume(request.row)
        question, images = read_messages(request.to_messages(request.row), source, several_images=shows == "images")
        if shows == "volume":
            raise ModelError(
                f"{source}: expected a task of this package on a 3D data set, since {model} reads volumes."
            )
        if shows == "image" and len(images) != 1:
            raise ModelError(
                f"{source}: expected one image in a question, which is what {model} takes, got {len(images)} images. "
                "Show a volume as one image with montage=9."
            )
        return question, images[0] if shows == "image" else images

    def _answer_batch(
        self, batch: Sequence[PreparedRequest], inputs: dict[str, Any], recorder: FeatureRecorder | None
    ) -> list[Reply]:
        first = batch[0]
        generations = self._loaded.generate(
            [item.question for item in batch],
            [item.visual for item in batch],
            max_new_tokens=first.max_new_tokens,
            labels=first.labels,
            inputs=inputs,
            # A plugin's model may have a generate() of its own, which need not know `watch` unless it is probed.
            **({} if recorder is None else {"watch": recorder.watch}),
        )
        replies = []
        for item, generation in zip(batch, generations, strict=True):
            text = cut(generation.text, item.until)
            blank = None if item.request.content is None else self._scores_without_content(item)
            replies.append(Reply(text, generation.scores, generation.label_tokens, blank, generation.tokens))
        if recorder is not None:
            labels = self._loaded.label_ids(first.question, first.request.row["answers"])
            controls = [item.controls for item in batch if item.controls is not None]
            records = [_index_record(item.request, reply) for item, reply in zip(batch, replies, strict=True)]
            recorder.keep(records, inputs, controls, [ids[self._loaded.prefix_length :] for ids in labels])
        return replies

    def _scores_without_content(self, item: PreparedRequest) -> tuple[float, ...] | None:
        """Return the label scores of the same question about a blank image, computed once for each question."""
        if item.labels is None or self._loaded.shows == "volume" or isinstance(item.question, FewShotPrompt):
            return None
        key = (item.question, item.labels)
        if key not in self._blank_scores:
            visual = [BLANK_IMAGE] if self._loaded.shows == "images" else BLANK_IMAGE
            (generation,) = self._loaded.generate([item.question], [visual], max_new_tokens=0, labels=item.labels)
            self._blank_scores[key] = generation.scores
        return self._blank_scores[key]


class _JournalWriter:
    """Writes answers to the journal; where features are recorded, only once these are on disk."""

    def __init__(self, journal: Journal, recorder: FeatureRecorder | None) -> None:
        self._journal, self._recorder = journal, recorder
        self._waiting: dict[str, tuple[str, Reply]] = {}

    def add(self, request: TaskRequest, reply: Reply) -> None:
        """Take an answer."""
        name = request.stored_name()
        identifier = name if self._recorder is None else str(request.row["id"])
        self._waiting[identifier] = (name, reply)

    def flush(self) -> None:
        """Write the answers that may be written."""
        ready = list(self._waiting) if self._recorder is None else self._recorder.durable()
        done = dict(self._waiting.pop(identifier) for identifier in ready if identifier in self._waiting)
        if done:
            self._journal.add(done)

    def close(self) -> None:
        """Wait for the features that are still being written, and write the remaining answers."""
        if self._recorder is not None:
            self._recorder.close()
        self.flush()


def _index_record(request: TaskRequest, reply: Reply) -> dict[str, Any]:
    """Return the entry of a document in the index of a feature store."""
    row, content = request.row, request.content
    record = {name: row[name] for name in ("id", "document", "group", "fold", "label")}
    attributes = dict(content.document(row).attributes) if content is not None else {}
    lists = {"scores": reply.scores, "blank": reply.blank_scores, "label_tokens": reply.label_tokens}
    return {
        **record,
        "answer": reply.text,
        "attributes": json.dumps(attributes, ensure_ascii=False),
        **{name: None if values is None else list(values) for name, values in lists.items()},
    }


def longest_answer(request: TaskRequest, loaded: LoadedModel, options: AnswerOptions) -> int:
    """Return the most tokens that the answer to a request may have."""
    return (
        options.max_new_tokens
        or loaded.max_new_tokens
        or int(request.generation.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
    )


def stop_words(request: TaskRequest) -> tuple[str, ...]:
    """Return the texts at which an answer to a request ends."""
    until = request.generation.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def cut(text: str, until: Sequence[str]) -> str:
    """Return a text up to the first stop word, without blanks around it."""
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def workload(visual: VisualInput) -> float:
    """Return how much there is to compute: pixels, or the voxels of a volume."""
    if isinstance(visual, Image.Image):
        return float(visual.width * visual.height)
    if isinstance(visual, list | tuple):
        return float(sum(image.width * image.height for image in visual))
    return float(visual.voxels.size)  # type: ignore[union-attr]
