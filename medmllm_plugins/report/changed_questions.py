"""The same documents asked in another way: other orders and wordings, another protocol, or without the real image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import NO_DIFFERENCE, Key, paired_differences
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import text

_KINDS: Final = ("order", "wording", "closed_set", "letter", "open", "blank", "shuffled")
"""Kinds of changes in the order in which they are listed."""


@dataclass(frozen=True, slots=True, eq=False)
class ChangedQuestion:
    """A question that differs from a model's usual one in one respect.

    Attributes:
        result: the result of the changed question.
        usual: the result of the usual one; ``None`` if it was not asked.
        kind: ``order`` or ``wording`` for several orders or wordings, ``blank`` or ``shuffled`` for a control without
            the real image, else the other protocol.
        change: what changes, in words.
        accuracy: accuracy of the changed question, a mean over orders or wordings.
        variants: accuracy under each order or wording; empty for other changes.
        usual_accuracy: accuracy of the usual question on the documents that both asked about.
        difference: changed minus usual, paired over these documents.
        shared: number of these.
        changed_answers: share of them that are answered differently, under at least one order or wording; NaN if it is
            unknown.
    """

    result: TaskResult
    usual: TaskResult | None
    kind: str
    change: str
    accuracy: Estimate
    variants: tuple[float, ...]
    usual_accuracy: float
    difference: Estimate
    shared: int
    changed_answers: float

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.result.subject


def changed_questions(dataset: DatasetRuns) -> list[ChangedQuestion]:
    """Return every changed question of each model, next to the usual one, model by model."""
    pairs = [
        (result, usual, kind)
        for subject in dataset.subjects
        for result, usual, kind in sorted(_pairs_of(dataset, subject), key=lambda pair: _KINDS.index(pair[2]))
    ]
    differences = paired_differences(
        {
            str(index): (_mean_correct(result), _mean_correct(usual), _groups(usual))
            for index, (result, usual, _) in enumerate(pairs)
            if usual is not None
        }
    )
    several = {
        (result.subject.number, kind)
        for result, _, kind in pairs
        if sum(other.subject is result.subject and name == kind for other, _, name in pairs) > 1
    }
    changes = []
    for index, (result, usual, kind) in enumerate(pairs):
        difference, usual_accuracy, shared = differences.get(str(index), NO_DIFFERENCE)
        variants = _variants(result)
        protocol = result.task.settings.protocol if (result.subject.number, kind) in several else ""
        changes.append(
            ChangedQuestion(
                result=result,
                usual=usual,
                kind=kind,
                change=text("tables.txt.jinja", "change", kind=kind, count=len(variants), protocol=protocol),
                accuracy=result.metrics["accuracy"],
                variants=variants,
                usual_accuracy=usual_accuracy,
                difference=difference,
                shared=shared,
                changed_answers=_changed_answers(result, usual),
            )
        )
    return changes


def _pairs_of(dataset: DatasetRuns, subject: Subject) -> list[tuple[TaskResult, TaskResult | None, str]]:
    """Return the changed questions of a model with their usual ones and kinds; of equal questions the largest."""
    main = dataset.main(subject)
    largest: dict[tuple[str, ...], tuple[TaskResult, TaskResult | None, str]] = {}
    for result in sorted(dataset.of(subject), key=lambda result: -len(result.task.outcomes)):
        if not result.task.scored or not known(result.metrics.get("accuracy")):
            continue
        if result.task.image != "shown":
            pair = (result, dataset.counterpart(result), result.task.image)
        elif result.task.varied:
            pair = (result, dataset.counterpart(result), result.task.varied)
        elif main is not None and main.task.plain and _differs_in_protocol(result, main):
            pair = (result, main, result.task.settings.protocol)
        else:
            continue
        if pair[2] in _KINDS:
            largest.setdefault(result.question(), pair)
    return list(largest.values())


def _differs_in_protocol(result: TaskResult, main: TaskResult) -> bool:
    return result.question() != main.question() and result.question("protocol") == main.question("protocol")


def _variants(result: TaskResult) -> tuple[float, ...]:
    if not result.task.varied:
        return ()
    accuracies = [source.metrics.get("accuracy", UNKNOWN) for source in result.task.sources.values()]
    return tuple(accuracy.value for accuracy in accuracies if known(accuracy))


def _document(result: TaskResult) -> dict[Key, list[tuple[str | None, bool, str]]]:
    """Return answer, whether it is correct, and group of each row, by document and finding."""
    rows: dict[Key, list[tuple[str | None, bool, str]]] = {}
    for outcome in result.task.outcomes:
        key = (outcome.document or outcome.id, outcome.finding or "", "")
        rows.setdefault(key, []).append((outcome.predicted, outcome.predicted == outcome.label, outcome.group))
    return rows


def _mean_correct(result: TaskResult) -> Mapping[Key, float]:
    return {key: float(np.mean([correct for _, correct, _ in rows])) for key, rows in _document(result).items()}


def _groups(result: TaskResult) -> Mapping[Key, str]:
    return {key: rows[0][2] for key, rows in _document(result).items()}


def _changed_answers(result: TaskResult, usual: TaskResult | None) -> float:
    """Return the share of documents whose answers differ: among the variants, or from the usual question's."""
    if (flips := result.metrics.get("flips")) is not None and known(flips):
        return flips.value
    if usual is None:
        return math.nan
    before, after = _document(usual), _document(result)
    shared = before.keys() & after.keys()
    answers = [{row[0] for row in (*before[key], *after[key])} for key in shared]
    return sum(len(kinds) > 1 for kinds in answers) / len(shared) if shared else math.nan
