"""Accuracy by subgroup: the columns of the data that the user named, such as scanner, view, sex or site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.part_shares import part_shares
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.utils.json_values import clean, mapping

MIN_DOCUMENTS: Final = 10
"""Smaller subgroups are not shown."""
_MAX_VALUES: Final = 20
"""A column of more numbers is divided into four subgroups of about equal size; one of more texts is left out."""
_QUARTERS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Subgroup:
    """The documents with one value of a column, as a model answered them.

    Attributes:
        column: name of the column.
        value: the value, or the range of the numbers; empty for documents without a value.
        documents: number of documents.
        groups: number of their groups.
        accuracy: accuracy on them.
    """

    subject: Subject
    column: str
    value: str
    documents: int
    groups: int
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Subgroups:
    """Subgroups of a data set.

    Attributes:
        rows: those with enough documents, by column, value and model.
        left_out: subgroups that are too small to be shown, each ``column: value``.
        unusable: columns with too many different texts.
    """

    rows: tuple[Subgroup, ...]
    left_out: tuple[str, ...]
    unusable: tuple[str, ...]


def subgroups(dataset: DatasetRuns) -> Subgroups:
    """Return accuracy by subgroup for the main result of each model; empty if the folds of the runs have no columns."""
    rows: list[Subgroup] = []
    left_out: dict[str, None] = {}
    unusable: dict[str, None] = {}
    for result in dataset.main_results():
        columns = _columns(result)
        for column, texts in columns.items():
            values = _values(texts)
            if values is None:
                unusable[column] = None
                continue
            rows += _subgroups_of(result, column, values, left_out)
    columns_in_order = {column: index for index, column in enumerate(dict.fromkeys(row.column for row in rows))}
    rows.sort(key=lambda row: (columns_in_order[row.column], _natural(row.value), row.subject.number))
    return Subgroups(tuple(rows), tuple(left_out), tuple(unusable))


def _columns(result: TaskResult) -> dict[str, dict[str, str]]:
    """Return the text of each document by column, from the folds of the run."""
    folds = result.run.folds.get(result.task.dataset)
    columns: dict[str, dict[str, str]] = {}
    asked = {outcome.document or outcome.id for outcome in result.task.outcomes}
    for row in folds.manifest.rows() if folds is not None else ():
        document = clean(row.get("id"))
        if document in asked:
            for name, value in mapping(row.get("attributes")).items():
                columns.setdefault(cut(name, 40), {})[document] = cut(value, 60)
    return columns


def _values(texts: Mapping[str, str]) -> dict[str, str] | None:
    """Return the subgroup of each document; ``None`` for a column of too many different texts."""
    if len(set(texts.values())) <= _MAX_VALUES:
        return dict(texts)
    try:
        numbers = {document: float(value) for document, value in texts.items() if value}
    except ValueError:
        return None
    if not np.isfinite(list(numbers.values())).all():
        return None
    ranked = sorted(numbers.values())
    starts = sorted({ranked[len(ranked) * quarter // _QUARTERS] for quarter in range(_QUARTERS)})
    names = {}
    for index, start in enumerate(starts):
        last = [value for value in ranked if value >= start and (index + 1 == len(starts) or value < starts[index + 1])]
        names[index] = f"{start:g}–{last[-1]:g}"
    return {
        document: names[int(np.searchsorted(starts, numbers[document], "right")) - 1] if document in numbers else ""
        for document in texts
    }


def _subgroups_of(
    result: TaskResult, column: str, values: Mapping[str, str], left_out: dict[str, None]
) -> list[Subgroup]:
    """Return the subgroups of one column with enough documents; name the others in ``left_out``."""
    outcomes = [row for row in result.task.outcomes if (row.document or row.id) in values]
    value_of = np.array([values[row.document or row.id] for row in outcomes])
    groups = np.array([row.group for row in outcomes])
    correct = np.array([row.predicted == row.label for row in outcomes], dtype=np.float64)
    documents = Counter(values[name] for name in {row.document or row.id for row in outcomes})
    names = sorted(documents, key=_natural)
    kept = [name for name in names if documents[name] >= MIN_DOCUMENTS]
    left_out |= dict.fromkeys(f"{column}: {name or '–'}" for name in names if name not in kept)
    if not kept:
        return []
    parts = np.array([value_of == name for name in kept])
    shares = part_shares(correct, parts, np.unique(groups, return_inverse=True)[1])
    return [
        Subgroup(result.subject, column, name, documents[name], len(set(groups[part])), share)
        for name, part, share in zip(kept, parts, shares, strict=True)
    ]


def _natural(name: str) -> tuple[bool, float, str]:
    """Sort numbers by value, texts by letters, and missing values last."""
    start = name.partition("–")[0]
    try:
        return name == "", float(start), ""
    except ValueError:
        return name == "", float("inf"), name.casefold()
