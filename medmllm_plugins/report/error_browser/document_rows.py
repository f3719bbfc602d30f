"""Answers document by document: probabilities of the classes, confidence, and the rows of the per-document CSV file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.protocols import YES_NO
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.utils.json_values import clean

Value: TypeAlias = str | int | float | None
DOCUMENT_COLUMNS: Final = (
    *("run", "model", "data_set", "task", "document", "finding", "variant", "group", "fold", "label", "predicted"),
    *("status", "correct", "confidence"),
)
"""Columns of the per-document CSV file before the probabilities; documented in ``docs/report.md``."""


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """The rows of the per-document CSV file of one data set.

    Attributes:
        columns: :data:`DOCUMENT_COLUMNS`, then ``probability_CLASS`` for each class.
        rows: one answer each, with a value for each column; ``None`` for what is unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


def answer_classes(result: TaskResult) -> tuple[str, ...]:
    """Return the classes that an answer can have, in the order of the label scores; yes and no for findings."""
    return YES_NO if result.multilabel else result.task.labels


def probabilities(outcome: Outcome) -> tuple[float, ...]:
    """Return the softmax over the label scores, one probability a class; empty without scores."""
    if not outcome.scores:
        return ()
    highest = max(outcome.scores)
    powers = [math.exp(score - highest) for score in outcome.scores]
    total = sum(powers)
    return tuple(power / total for power in powers)


def confidence(outcome: Outcome, classes: Sequence[str]) -> float | None:
    """Return the probability of the answered class; ``None`` without scores or without an answered class.

    Args:
        outcome: the answer.
        classes: the classes in the order of its scores.
    """
    shares = probabilities(outcome)
    if outcome.predicted not in classes or len(shares) != len(classes):
        return None
    return shares[classes.index(outcome.predicted)]


def document_name(outcome: Outcome) -> str:
    """Return the id of the document that an answer is about."""
    return outcome.document or outcome.id


def folds_of(result: TaskResult) -> dict[str, str]:
    """Return the fold of each document of the run's data set, as far as the run folder says it."""
    folds = result.run.folds.get(result.task.dataset)
    rows = folds.manifest.rows() if folds is not None else ()
    return {str(row["id"]): str(row["fold"]) for row in rows if row.keys() >= {"id", "fold"} and row["fold"] in FOLDS}


def document_rows(dataset: DatasetRuns) -> DocumentRows:
    """Return every answer to every task of a data set, without its text, for the CSV file ``DATASET.documents.csv``."""
    results = [result for result in dataset.results if result.task.outcomes]
    classes = list(dict.fromkeys(name for result in results for name in answer_classes(result)))
    rows: list[tuple[Value, ...]] = []
    for result in results:
        folds, names = folds_of(result), answer_classes(result)
        for outcome in result.task.outcomes:
            share_of = dict(zip(names, probabilities(outcome), strict=False))
            document, share = document_name(outcome), confidence(outcome, names)
            facts: tuple[Value, ...] = (
                *(result.run.name, result.subject.label, dataset.name, result.task.name, document, outcome.finding),
                *(outcome.variant or None, outcome.group, folds.get(document), outcome.label, outcome.predicted),
                *(outcome.status, int(outcome.predicted == outcome.label), _rounded(share)),
            )
            rows.append((*map(_plain, facts), *(_rounded(share_of.get(name)) for name in classes)))
    columns = (*DOCUMENT_COLUMNS, *(f"probability_{clean(name)}" for name in classes))
    return DocumentRows(columns, tuple(rows))


def _plain(value: Value) -> Value:
    return clean(value) if isinstance(value, str) else value


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)
