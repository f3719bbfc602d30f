"""Answers to a task's questions outside of a run of the host, stored so that a study of repairs can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import OptionError
from medmllm_plugins.interventions.repair_training import TrainingExample
from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import FewShotExample, FewShotPrompt, LoadedModel, Question, VisualInput
from medmllm_plugins.models.processes import Processes
from medmllm_plugins.prompts.anchor_prompts import sample_documents
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_rows import variants
from medmllm_plugins.prompts.task_settings import ALL, TaskSettings
from medmllm_plugins.results.outcome_files import read_outcomes, write_outcomes
from medmllm_plugins.runtime.answer_loop import BLANK_IMAGE, DEFAULT_NEW_TOKENS, workload
from medmllm_plugins.runtime.batches import Batches, BatchSize
from medmllm_plugins.utils.progress import Progress


class QuestionSet:
    """The questions of one task about one fold.

    Attributes:
        name: the task.
        content: rows, questions and images.
        rows: the rows that are asked about.
    """

    def __init__(
        self,
        name: str,
        settings: TaskSettings,
        data: Dataset,
        fold: Fold,
        limit: int | None = None,
        *,
        without: int | None = None,
    ) -> None:
        """Choose the rows.

        Args:
            name: the task.
            settings: its settings.
            data: its data set.
            fold: the fold.
            limit: the most documents, taken evenly from the classes; ``None`` for all.
            without: asks one question about each document, in all wordings but this one in turn; ``None`` for the
                wording of the settings.

        Raises:
            OptionError: the task asks about every document in several ways.
        """
        if len(variants(settings)) > 1:
            raise OptionError(f"{name}: expected one question about each document, got order=varied or paraphrase=all.")
        self.name, self.fold = name, fold
        folds: tuple[Fold, ...] = (fold,)
        settings = replace(settings, folds=folds, paraphrase=settings.paraphrase if without is None else ALL)
        self.content = TaskContent(name, settings, data)
        self.rows: Sequence[Row] = self.content.row_list
        if limit is not None:
            self.rows = self.first_documents(limit)
        if without is not None:
            self.rows = _in_turn(self.rows, [each.name for each in variants(settings) if each.paraphrase != without])

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the label scores."""
        return self.content.rows.classes

    def first_documents(self, count: int, seed: int = 0) -> list[Row]:
        """Return the rows of ``count`` documents, evenly from the classes, each group once before any comes again."""
        documents = list({row["document"]: self.content.document(row) for row in self.rows}.values())
        finding = self.content.settings.finding or None
        if self.content.settings.dataset.kind == "multilabel" and finding is None:
            order = np.random.default_rng(seed).permutation(len(documents))
            chosen = {documents[index].id for index in order[:count]}
        else:
            chosen = {document.id for document in sample_documents(documents, finding, count, seed)}
        return [row for row in self.rows if row["document"] in chosen]

    def examples(self, loaded: LoadedModel, rows: Sequence[Row], labels: Sequence[str]) -> list[TrainingExample]:
        """Return rows as training examples with these labels, which may be shuffled ones."""
        examples = []
        for row, label in zip(rows, labels, strict=True):
            question = self.content.question(row)
            answer = question.labels[self.classes.index(label)]

            def read(row: Row = row) -> VisualInput:
                return self.visual(loaded, row)

            examples.append(TrainingExample(question.text, read, answer))
        return examples

    def visual(self, loaded: LoadedModel, row: Row) -> VisualInput:
        """Return what a row is about, as the model takes it."""
        if loaded.shows == "volume":
            return self.content.volume(row)
        images = self.content.images(row)
        return images if loaded.shows == "images" else images[0]

    def prompt(self, row: Row, loaded: LoadedModel, shots: int) -> tuple[Question, VisualInput]:
        """Return question and images of a row, behind solved examples from the train fold."""
        question, visual = self.content.question(row).text, self.visual(loaded, row)
        if not shots:
            return question, visual
        solved = [(self.content.document_images(item), answer) for item, answer in self.content.examples(row, shots)]
        examples = tuple(FewShotExample(question, len(images), answer) for images, answer in solved)
        pictures = [picture for images, _ in solved for picture in images]
        return FewShotPrompt(examples, question), [*pictures, *self.content.images(row)]


def _in_turn(rows: Sequence[Row], wordings: Sequence[str]) -> list[Row]:
    """Return the rows of each document in one of the wordings: the first document in the first, and so on."""
    documents = list(dict.fromkeys(row["document"] for row in rows))
    chosen = {document: wordings[index % len(wordings)] for index, document in enumerate(documents)}
    return [row for row in rows if row["variant"] == chosen[row["document"]]]


def answer_rows(
    loaded: LoadedModel,
    questions: QuestionSet,
    rows: Sequence[Row],
    *,
    batch_size: int,
    shots: int = 0,
    max_new_tokens: int | None = None,
    title: str = "",
) -> tuple[list[Outcome], dict[str, str]]:
    """Answer rows and score their labels; returns outcomes, and texts by id.

    Args:
        loaded: the model.
        questions: the task.
        rows: of its rows.
        batch_size: rows at a time; halved where they do not fit.
        shots: number of solved examples before each question.
        max_new_tokens: longest answer; that of the model, else 64, if ``None``.
        title: for the progress bar; empty for none.
    """
    longest = max_new_tokens or loaded.max_new_tokens or DEFAULT_NEW_TOKENS
    content = questions.content
    texts: dict[str, str] = {}

    def read(row: Row) -> tuple[Row, Question, VisualInput]:
        return row, *questions.prompt(row, loaded, shots)

    def prepare(batch: list[Any]) -> dict[str, Any]:
        return loaded.prepare([question for _, question, _ in batch], [visual for _, _, visual in batch])

    def answer(batch: list[Any], inputs: dict[str, Any]) -> list[Outcome]:
        labels = content.question(batch[0][0]).labels
        prompts = [question for _, question, _ in batch]
        answers = loaded.generate(prompts, [], max_new_tokens=longest, labels=labels, inputs=inputs)
        outcomes = []
        for (row, *_), generation in zip(batch, answers, strict=True):
            texts[row["id"]] = generation.text
            reading = content.read_answer(row, generation.text)
            outcomes.append(
                Outcome(
                    row["id"],
                    row["group"],
                    row["label"],
                    reading.label,
                    reading.status,
                    generation.scores,
                    finding=row["finding"] or None,
                    document=row["document"],
                )
            )
        return outcomes

    outcomes: list[Outcome] = []
    batches = Batches(
        BatchSize(batch_size), read, lambda item: workload(item[2]), prepare, answer, ahead=loaded.device.type != "cpu"
    )
    with Progress(title, len(rows), "questions", shown=bool(title)) as progress:
        for batch, _, answered in batches.run(list(rows)):
            outcomes += answered
            progress.update(len(batch))
    return outcomes, texts


def blank_scores(loaded: LoadedModel, question: Question, labels: Sequence[str]) -> Floats | None:
    """Return the label scores of a blank image, (K,) in nats; ``None`` where the model takes volumes or gives none."""
    if loaded.shows == "volume":
        return None
    visual: VisualInput = [BLANK_IMAGE] if loaded.shows == "images" else BLANK_IMAGE
    (answer,) = loaded.generate([question], [visual], max_new_tokens=0, labels=labels)
    return None if answer.scores is None else np.array(answer.scores)


def stored(path: Path, make: Callable[[], tuple[list[Outcome], dict[str, str]]], processes: Processes) -> list[Outcome]:
    """Return the answers in a file, or make them and write the file; they are in the order of ids.

    All processes make them together, and the first one writes.
    """
    is_there = path.is_file()
    processes.wait()  # until all have looked
    if not is_there:
        answers = make()
        if processes.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_outcomes(path, *answers)
        processes.wait()
    return read_outcomes(path)
