"""What a task of this package shows and asks: the rows of one data set, their images and solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from loguru import logger
from PIL import Image

from medmllm_plugins.answers.parsing import Answer
from medmllm_plugins.data.core.documents import MASKED, Document
from medmllm_plugins.data.core.image_controls import blank, draw_marks, mask_border, partners
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.data.loading.few_shot import FewShotExamples
from medmllm_plugins.data.loading.volume_view import draw_marks_on_volume, mask_border_of_volume
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.prompts.anchor_prompts import (
    AnchorItem,
    check_findings,
    mark_anchors,
    sample_documents,
    text_anchors,
)
from medmllm_plugins.prompts.protocols import Question
from medmllm_plugins.prompts.task_rows import TaskRows, correct_answer
from medmllm_plugins.prompts.task_settings import TaskSettings

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

Row = Mapping[str, Any]
"""One question about one document, see :class:`medmllm_plugins.prompts.task_rows.TaskRows`."""


class TaskContent:
    """Rows, questions and images of one task.

    Attributes:
        predict_only: whether answers are collected without scoring them.
        evaluated: which of the rows are evaluated, on all processes together.
    """

    def __init__(self, name: str, settings: TaskSettings, data: Dataset) -> None:
        self.name, self.settings, self.data = name, settings, data
        self.predict_only = False
        documents = data.select(settings.folds)
        check_findings(settings.dataset)
        self.rows = TaskRows(settings, documents)
        self.row_list = list(self.rows)
        self.evaluated = range(len(self.row_list))
        self._documents = {document.id: document for document in documents}
        self._partners = partners(documents) if settings.image == "shuffled" else {}
        self._examples: dict[str, FewShotExamples] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """Everything that decides the questions, as plain JSON: part of the names of stored answers."""
        return {**self.settings.to_dict(), "data": self.data.fingerprint, "labels": list(self.rows.classes)}

    def document(self, row: Row) -> Document:
        """Return the document of a row."""
        return self._documents[row["document"]]

    def question(self, row: Row) -> Question:
        """Return the question of a row."""
        return self.rows.question(row)

    def read_answer(self, row: Row, text: str) -> Answer:
        """Read a class out of the answer to a row."""
        return self.question(row).read(text)

    def images(self, row: Row) -> list[Image.Image]:
        """Return the RGB images of a row's document, or of the control shown in its place."""
        document = self.document(row)
        if row["fold"] == MASKED:
            return self.settings.view.pictures(self.data, document, mask_border)
        if self.settings.image == "shuffled":
            return self.document_images(self._partners[document.id])
        images = self.document_images(document)
        return [blank(image) for image in images] if self.settings.image == "blank" else images

    def document_images(self, document: Document) -> list[Image.Image]:
        """Return the RGB images of a document; the slices of a volume."""
        return self.settings.view.pictures(self.data, document)

    def anchors(self) -> list[AnchorItem]:
        """Return the anchors of a task with one question: in words, and about squares on images of the test fold."""
        settings = self.settings
        if not settings.anchors:
            return []
        documents = [self.document(self.row_list[index]) for index in self._tested]
        paraphrase = int(settings.paraphrase)
        marks = mark_anchors(
            documents, settings.dataset, finding=settings.finding, paraphrase=paraphrase, count=settings.anchors
        )
        return [*text_anchors(settings.dataset, self.question(self.row_list[0])), *marks]

    @property
    def scored_questions(self) -> int:
        """Return how many questions are scored without ``--limit``: where probes are fitted, those of the test fold."""
        if self.settings.features is None:
            return len(self.row_list)
        return sum(row["fold"] == "test" for row in self.row_list)

    @property
    def _tested(self) -> list[int]:
        """Indices of the evaluated rows of the test fold, for tasks with one question about each document."""
        return [index for index in self.evaluated if self.row_list[index]["fold"] == "test"]

    @cached_property
    def masked_rows(self) -> dict[int, Row]:
        """Rows of the test fold that are shown once more with the border masked, by index in :attr:`row_list`.

        They have an ``id`` of their own, and the fold :data:`~medmllm_plugins.data.core.documents.MASKED`. At most
        ``settings.masked`` documents are sampled evenly from the classes, each group once before any comes again.
        """
        settings = self.settings
        if not settings.masked or settings.image != "shown":
            return {}
        index_of = {self.row_list[index]["document"]: index for index in self._tested}
        documents = [self._documents[name] for name in index_of]
        rows: dict[int, Row] = {}
        for document in sample_documents(documents, settings.finding, settings.masked):
            row = self.row_list[index_of[document.id]]
            rows[index_of[document.id]] = {**row, "id": f"{row['id']} | {MASKED}", "fold": MASKED}
        return rows

    @cached_property
    def patched_rows(self) -> tuple[int, ...]:
        """Indices in :attr:`row_list` of the rows into which states of another model are put.

        ``settings.patching.n`` documents of each class are sampled, each group once before any comes again.
        """
        options = self.settings.patching
        if options is None:
            return ()
        index_of = {self.row_list[index]["document"]: index for index in self._tested}
        documents = [self._documents[name] for name in index_of]
        count = options.n * len(self.question(self.row_list[0]).classes)
        return tuple(index_of[item.id] for item in sample_documents(documents, self.settings.finding, count))

    def anchor_images(self, item: AnchorItem) -> list[Image.Image]:
        """Return the RGB images of an anchor, with squares drawn on them; none for one in words."""
        if item.document is None:
            return []
        return self.settings.view.pictures(self.data, item.document, partial(draw_marks, marks=item.marks))

    def anchor_volume(self, item: AnchorItem) -> Volume:
        """Return the volume of an anchor's document with squares drawn on its slices."""
        assert item.document is not None, "an anchor in words has no volume"
        return draw_marks_on_volume(self.data.volume(item.document), item.marks)

    def volume(self, row: Row) -> Volume:
        """Return the volume of a row, for models that read volumes.

        Raises:
            OptionError: the task asks about 2D images or about a control image.
            DataError: the volume cannot be read.
        """
        if self.settings.dataset.dimensions != 3 or self.settings.image != "shown":
            raise OptionError(
                f"{self.name}: expected a 3D data set with image=shown, since the model reads volumes, got "
                f"{self.settings.dataset.dimensions}D and image={self.settings.image}. Choose another task."
            )
        volume = self.data.volume(self.document(row))
        return mask_border_of_volume(volume) if row["fold"] == MASKED else volume

    def examples(self, row: Row, count: int) -> list[tuple[Document, str]]:
        """Return few-shot examples for a row: documents of the train fold with their correct answers.

        Raises:
            DataError: the train fold has fewer than ``count``.
        """
        if not count:
            return []
        finding, question = row["finding"] or None, self.question(row)
        examples = self._examples.get(row["finding"])
        if examples is None:
            examples = FewShotExamples(
                self.data.documents, tuple(question.classes), lambda document: correct_answer(document, finding)
            )
            self._examples[row["finding"]] = examples
        answers = dict(zip(question.classes, question.labels, strict=True))
        chosen = examples.before(self.document(row), count)
        return [(document, answers[correct_answer(document, finding)]) for document in chosen]

    def lesion_mask(self, row: Row) -> npt.NDArray[np.bool_] | None:
        """Return the lesion of a row's document, (h, w) bool; ``None`` for 3D sets, findings and unknown lesions.

        Raises:
            DataError: the mask cannot be read.
        """
        has_lesion = self.settings.dataset.dimensions == 2 and not row["finding"]
        return self.data.mask(self.document(row)) if has_lesion else None

    def readable_lesion_mask(self, row: Row) -> npt.NDArray[np.bool_] | None:
        """Return the lesion; ``None`` with a warning if the mask cannot be read, since attributions need none."""
        try:
            return self.lesion_mask(row)
        except DataError as error:  # left out when the set was loaded, or damaged since
            logger.warning(f"{row['id']}: no mask of the lesion: {error}")
            return None

    def note_skipped(self, faults: list[str]) -> None:
        """List files that were left out, beside those left out when the data set was loaded."""
        self.data = replace(self.data, skipped=(*self.data.skipped, *faults))
