"""Rows of the dot strip: guessing, a blank image, the reference classifier and each model on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.metrics.readability import MOSTLY
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.overview import Ranking, best_reference
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.run_pairs import ImageControl
from medmllm_plugins.report.templating import text
from medmllm_plugins.report.verdict import BaselineComparison, Verdict

RowKind: TypeAlias = Literal["guess", "blank", "reference", "model"]
MAX_BLANKS: Final = 2
"""With more models than this, only the best one's blank image control is drawn: the strip is about models."""
MAX_NAME: Final = 34
"""Characters of a name that fit above a row on a phone."""
MAX_MODELS: Final = 12
"""Models in the strip, the best ones; section "Models" has all."""
SAME: Final = 0.0005
"""Accuracies that are closer are printed alike."""


@dataclass(frozen=True, slots=True)
class StripRow:
    """One row of the strip.

    Attributes:
        name: name, at most :data:`MAX_NAME` characters.
        accuracy: its accuracy; the interval is unknown for a constant guess.
        questions: questions behind it; 0 where it is not known.
        used: whether models may be compared with it; what is not used is drawn hollow.
        note: what a reader must know; empty if there is nothing.
        number: number of the model that the row is about; ``None`` for all.
        full_name: the whole name.
    """

    kind: RowKind
    name: str
    accuracy: Estimate
    questions: int
    used: bool = True
    note: str = ""
    number: int | None = None
    full_name: str = ""


def strip_rows(dataset: DatasetRuns, order: Ranking, controls: Sequence[ImageControl]) -> list[StripRow]:
    """Return the rows of the strip, the highest accuracy first; empty if no accuracy is known."""
    verdicts = [*order.ranked, *order.unread][:MAX_MODELS]
    if not verdicts:
        return _without_models(dataset)
    rows = [*_guess(verdicts[0]), *_blanks(verdicts, controls), *_references(verdicts), *map(_model, verdicts)]
    return _sorted(rows)


def _sorted(rows: Sequence[StripRow]) -> list[StripRow]:
    return sorted((row for row in rows if known(row.accuracy)), key=lambda row: -row.accuracy.value)


def _without_models(dataset: DatasetRuns) -> list[StripRow]:
    verdict = best_reference(dataset)
    if verdict is None:
        return []
    name = verdict.subject.label
    shown, number = cut(_reference_name(name, used=True), MAX_NAME), verdict.subject.number
    row = StripRow("reference", shown, verdict.accuracy, verdict.questions, number=number, full_name=name)
    return _sorted([row, *_guess(verdict)])


def _guess(verdict: Verdict) -> Iterator[StripRow]:
    """Yield the constant guess on the questions of the best model."""
    if verdict.guess.name:
        name = text("answer.txt.jinja", "strip_guess", name=verdict.guess.name)
        yield StripRow("guess", name, verdict.guess.accuracy, verdict.questions)


def _model(verdict: Verdict) -> StripRow:
    note = text("answer.txt.jinja", "strip_model_unread", share=verdict.parsed) if verdict.unread else ""
    subject = verdict.subject
    return StripRow(
        "model",
        cut(subject.label, MAX_NAME),
        verdict.accuracy,
        verdict.questions,
        not verdict.unread,
        note,
        subject.number,
        subject.label,
    )


def _blanks(verdicts: Sequence[Verdict], controls: Sequence[ImageControl]) -> Iterator[StripRow]:
    """Yield the same questions about a blank image."""
    several = len(verdicts) > 1
    for verdict in verdicts if len(verdicts) <= MAX_BLANKS else verdicts[:1]:
        control = blank_control(verdict, controls)
        if control is not None:
            name = text("answer.txt.jinja", "strip_blank", model=verdict.subject.label if several else "")
            accuracy = control.result.metrics.get("accuracy", UNKNOWN)
            unread = control.result.metrics.get("parsed", UNKNOWN).value < MOSTLY
            note = ""
            if unread:
                share = control.result.metrics["parsed"].value
                note = text("answer.txt.jinja", "strip_model_unread", share=share)
            questions, number = control.result.question_count, verdict.subject.number
            yield StripRow("blank", cut(name, MAX_NAME), accuracy, questions, not unread, note, number, name)


def blank_control(verdict: Verdict, controls: Sequence[ImageControl]) -> ImageControl | None:
    """Return the blank image control of a model's main question; ``None`` if it was not run."""
    return next(
        (
            control
            for control in controls
            if control.result.task.image == "blank" and control.counterpart is verdict.result
        ),
        None,
    )


def _references(verdicts: Sequence[Verdict]) -> Iterator[StripRow]:
    """Yield each reference classifier once, as it compares with the best model."""
    names: set[str] = set()
    for verdict in verdicts:
        reference = verdict.reference
        if reference.name and reference.name not in names:
            names.add(reference.name)
            yield _reference(verdict, reference)


def _reference(verdict: Verdict, reference: BaselineComparison) -> StripRow:
    accuracy, questions, notes = reference.accuracy, 0, []
    if reference.compared and reference.shared and _differs(reference):
        # Its own accuracy is over other questions, such as those that --limit left out of the model's run.
        accuracy, questions = Estimate(reference.shared_accuracy, math.nan, math.nan), reference.shared
        notes.append(text("answer.txt.jinja", "strip_shared", count=reference.shared))
    used = reference.compared and reference.informative
    if reference.obstacle:
        notes.append(text("answer.txt.jinja", "strip_obstacle", reason=reference.reason))
    elif not reference.informative:
        notes.append(text("answer.txt.jinja", "strip_uninformative"))
    name = _reference_name(reference.name, used=used)
    result = next((each for each in verdict.dataset.references if each.subject.label == reference.name), None)
    if result is not None and not questions:
        questions = result.question_count
    number = None if result is None else result.subject.number
    return StripRow(
        "reference", cut(name, MAX_NAME), accuracy, questions, used, "; ".join(notes), number, reference.name
    )


def _reference_name(label: str, *, used: bool) -> str:
    """Return the name of a reference classifier that says what it is."""
    name = label.removeprefix("baseline ").removeprefix("timm:")
    return text("answer.txt.jinja", "strip_reference", name=name, used=used)


def _differs(reference: BaselineComparison) -> bool:
    return abs(reference.shared_accuracy - reference.accuracy.value) > SAME
