"""Answers as the error browser shows them: question by question, of all models, with a confusion matrix of each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report.error_browser.document_rows import (
    answer_classes,
    confidence,
    document_name,
    folds_of,
    probabilities,
)
from medmllm_plugins.report.error_browser.related_answers import RelatedAnswer, RelatedAnswers
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.utils.json_values import clean

MAX_QUESTIONS: Final = 1_000
"""Questions of a data set whose answers are on the page; all are in the CSV file."""


@dataclass(frozen=True, slots=True)
class BrowsedAnswer:
    """The answer of one model to one question.

    Attributes:
        predicted: index of the answered class; ``None`` where the answer could not be read.
        confidence: probability of the answered class; ``None`` without label scores.
        probabilities: one a class; empty without label scores.
        text: the answer as the model wrote it; ``None`` where the run folder has no text.
    """

    predicted: int | None
    status: str
    correct: bool
    confidence: float | None
    probabilities: tuple[float, ...]
    text: str | None
    related: tuple[RelatedAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class BrowsedQuestion:
    """One question with the answers of all models.

    Attributes:
        id: id of the question: that of the document, with finding and variant where there are several.
        label: index of the true class.
        answers: answers by the number of the model.
    """

    id: str
    document: str
    group: str
    fold: str
    finding: str
    variant: str
    label: int
    answers: dict[int, BrowsedAnswer] = field(default_factory=dict)

    @property
    def has_error(self) -> bool:
        """Whether a model answers it wrongly."""
        return any(not answer.correct for answer in self.answers.values())

    @property
    def error_rank(self) -> tuple[bool, float, str]:
        """Sorting key: errors before correct answers, the most confident of any model first, those without last."""
        wrong = [answer.confidence for answer in self.answers.values() if not answer.correct]
        return (not wrong, -max((share for share in wrong if share is not None), default=-1.0), self.id)


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A true class in a confusion matrix: for each answered class, the count and the percent of the row."""

    name: str
    cells: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ErrorBrowser:
    """All answers of the main results on the same data.

    Attributes:
        results: the main result of each model.
        classes: classes that an answer can have.
        questions: those on the page, most confident errors first.
        total: number of all questions.
        related_names: what the related answers answer, by their index, and whether the model was shown the image.
        data: first characters of the data's fingerprint, where runs used different data; else empty.
    """

    dataset: DatasetRuns
    results: tuple[TaskResult, ...]
    classes: tuple[str, ...]
    questions: tuple[BrowsedQuestion, ...]
    total: int
    related_names: tuple[tuple[str, bool], ...]
    matrices: tuple[tuple[MatrixRow, ...], ...]
    data: str = ""

    @property
    def multilabel(self) -> bool:
        """Whether each question is about one finding."""
        return any(question.finding for question in self.questions)

    @property
    def has_unreadable(self) -> bool:
        """Whether there are answers from which no class could be read."""
        return any(row.cells[-1][0] for rows in self.matrices for row in rows)

    @property
    def has_groups(self) -> bool:
        """Whether a group can have several documents."""
        return any(question.group not in ("", question.document) for question in self.questions)

    @property
    def error_counts(self) -> list[int]:
        """Number of errors of each result, over all questions."""
        return [
            sum(count for index, row in enumerate(rows) for other, (count, _) in enumerate(row.cells) if other != index)
            for rows in self.matrices
        ]

    def worst_errors(self, count: int) -> list[tuple[BrowsedQuestion, TaskResult, BrowsedAnswer]]:
        """Return the most confident errors, the models in turn, each question once."""
        queues = [_errors(self.questions, result.subject.number) for result in self.results]
        chosen: dict[str, tuple[BrowsedQuestion, TaskResult, BrowsedAnswer]] = {}
        for turn in zip_longest(*queues):
            for question, result in zip(turn, self.results, strict=True):
                if question is not None and question.id not in chosen and len(chosen) < count:
                    chosen[question.id] = (question, result, question.answers[result.subject.number])
        return list(chosen.values())


def _errors(questions: Sequence[BrowsedQuestion], number: int) -> list[BrowsedQuestion]:
    """Return the questions that a model answers wrongly, most confident first, those without confidence last."""

    def rank(question: BrowsedQuestion) -> tuple[float, str]:
        share = question.answers[number].confidence
        return (1.0 if share is None else -share, question.id)

    wrong = [question for question in questions if number in question.answers and not question.answers[number].correct]
    return sorted(wrong, key=rank)


def error_browsers(dataset: DatasetRuns) -> tuple[ErrorBrowser, ...]:
    """Return the browsers of a data set: one, or one for each state of the data where runs used different data."""
    cohorts: dict[tuple[str, ...], list[TaskResult]] = defaultdict(list)
    for result in dataset.main_results():
        if result.task.outcomes:
            options = json.dumps(dict(result.task.settings.dataset_options), sort_keys=True, default=str)
            cohorts[result.fingerprint, options, *_classes(result)].append(result)
    several = len(cohorts) > 1
    return tuple(
        _browser(dataset, members, fingerprint[:8] if several else "") for (fingerprint, *_), members in cohorts.items()
    )


def _classes(result: TaskResult) -> tuple[str, ...]:
    """Return the classes; those that occur too, where metrics and manifest do not name them."""
    occurring = {outcome.label for outcome in result.task.outcomes}
    occurring |= {outcome.predicted for outcome in result.task.outcomes if outcome.predicted is not None}
    names = answer_classes(result)
    return (*names, *sorted(occurring - set(names)))


def _browser(dataset: DatasetRuns, results: Sequence[TaskResult], data: str) -> ErrorBrowser:
    classes = _classes(results[0])
    related = [RelatedAnswers(dataset, result, classes) for result in results]
    names = tuple(dict.fromkeys(name for answers in related for name in answers.names))
    index_of = {name: index for index, name in enumerate(names)}
    questions: dict[str, BrowsedQuestion] = {}
    for result, others in zip(results, related, strict=True):
        folds, indices = folds_of(result), [index_of[name] for name in others.names]
        for outcome in result.task.outcomes:
            question = questions.setdefault(outcome.id, _question(outcome, classes, folds))
            question.answers[result.subject.number] = _answer(result, outcome, classes, others.of(outcome, indices))
    ordered = interleaved(sorted(questions.values(), key=lambda question: question.error_rank))
    return ErrorBrowser(
        dataset=dataset,
        results=tuple(results),
        classes=tuple(map(clean, classes)),
        questions=tuple(ordered[:MAX_QUESTIONS]),
        total=len(questions),
        related_names=names,
        matrices=tuple(_matrix(result, classes) for result in results),
        data=data,
    )


def interleaved(questions: Sequence[BrowsedQuestion]) -> list[BrowsedQuestion]:
    """Order questions so that errors come first, and the true classes take turns among errors and among the rest."""
    queues: dict[bool, dict[int, list[BrowsedQuestion]]] = {True: defaultdict(list), False: defaultdict(list)}
    for question in questions:
        queues[question.has_error][question.label].append(question)
    turns = (turn for has_error in (True, False) for turn in zip_longest(*queues[has_error].values()))
    return [question for turn in turns for question in turn if question is not None]


def _question(outcome: Outcome, classes: Sequence[str], folds: Mapping[str, str]) -> BrowsedQuestion:
    document = document_name(outcome)
    return BrowsedQuestion(
        id=outcome.id,
        document=document,
        group=outcome.group,
        fold=folds.get(document, ""),
        finding=outcome.finding or "",
        variant=outcome.variant,
        label=classes.index(outcome.label),
    )


def _answer(
    result: TaskResult, outcome: Outcome, classes: Sequence[str], related: tuple[RelatedAnswer, ...]
) -> BrowsedAnswer:
    shares = probabilities(outcome)
    return BrowsedAnswer(
        predicted=None if outcome.predicted is None else classes.index(outcome.predicted),
        status=outcome.status,
        correct=outcome.predicted == outcome.label,
        confidence=confidence(outcome, classes),
        probabilities=shares if len(shares) == len(classes) else (),
        text=result.task.answers.get(outcome.id),
        related=related,
    )


def _matrix(result: TaskResult, classes: Sequence[str]) -> tuple[MatrixRow, ...]:
    """Count answers by true class and answered class; the last column are answers that could not be read."""
    counts = [[0] * (len(classes) + 1) for _ in classes]
    for outcome in result.task.outcomes:
        column = len(classes) if outcome.predicted is None else classes.index(outcome.predicted)
        counts[classes.index(outcome.label)][column] += 1
    return tuple(
        MatrixRow(clean(name), tuple((count, 100 * count / max(1, sum(row))) for count in row))
        for name, row in zip(classes, counts, strict=True)
    )
