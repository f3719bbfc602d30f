"""Tables of the report: shown and sortable on the page, written as CSV beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import yaml

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report import formatting
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import template_source, texts
from medmllm_plugins.utils.atomic_files import csv_text

Kind: TypeAlias = Literal["text", "hash", "share", "difference", "decimal", "count", "p"]
"""Type of a column's values: text; a fingerprint; a share of 1, or a difference of two shares, shown in percent; a
number with decimals; a count; a p-value."""
Value: TypeAlias = str | int | float | Estimate | None
Row: TypeAlias = tuple[Subject, Sequence[Value]]
"""The model that a row is about, and the row's values without the model's name."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, its name in the CSV file, and the type of its values."""

    title: str
    name: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class ShownValue:
    """A value as the page shows it: its text, its interval on a line below, and the key to sort by."""

    text: str
    interval: str
    sort_key: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report.

    Attributes:
        rows: one value for each column; an :class:`Estimate` takes three columns of the CSV file.
        series: number of the model that each row is about; empty if rows are not about models.
    """

    stem: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    series: tuple[int, ...] = ()
    note: str = ""

    def shown(self) -> list[tuple[int | None, list[ShownValue]]]:
        """Return the rows as the page shows them, each with its model's number."""
        numbers = self.series or (None,) * len(self.rows)
        return [
            (series, [shown_value(value, column.kind) for value, column in zip(row, self.columns, strict=True)])
            for series, row in zip(numbers, self.rows, strict=True)
        ]

    def csv(self) -> str:
        """Return the table as CSV; an undefined number is an empty result."""
        wide = [any(isinstance(row[index], Estimate) for row in self.rows) for index in range(len(self.columns))]
        header = [
            f"{column.name}{suffix}"
            for column, is_wide in zip(self.columns, wide, strict=True)
            for suffix in (("", "_low", "_high") if is_wide else ("",))
        ]
        return csv_text(header, (list(_flat(row, wide)) for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: rows map column names to values, estimates are mappings."""
        names = [column.name for column in self.columns]
        rows = [
            {
                name: value.to_dict() if isinstance(value, Estimate) else _number(value)
                for name, value in zip(names, row, strict=True)
            }
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows}


def read_columns(name: str) -> tuple[Column, ...]:
    """Return the columns of a table as ``templates/columns.yaml`` declares them."""
    declared = yaml.safe_load(template_source("columns.yaml"))[name]
    return tuple(
        Column(heading, column) if isinstance(heading, str) else Column(heading[0], column, heading[1])
        for column, heading in declared.items()
    )


def model_table(
    dataset: DatasetRuns, name: str, rows: Iterable[Row], columns: Sequence[Column] | None = None, **values: Any
) -> Table:
    """Build a table about the models of a data set; the first column names them.

    Args:
        dataset: the data set.
        name: the table's name, which is also its macro in ``templates/tables.txt.jinja`` with title and note.
        rows: the rows.
        columns: the columns after the model's name; by default those that are declared for the table.
        values: what the macro needs.
    """
    pairs = list(rows)
    title, note = texts("tables.txt.jinja", name, data_set=dataset.title, **values)
    return Table(
        stem=f"{dataset.name}.{name}",
        title=title,
        columns=(Column("Model", "model"), *(read_columns(name) if columns is None else columns)),
        rows=tuple((subject.label, *row) for subject, row in pairs),
        series=tuple(subject.number for subject, _ in pairs),
        note=note,
    )


def _flat(row: Sequence[Value], wide: Sequence[bool]) -> Iterator[str | int | float | None]:
    for value, is_wide in zip(row, wide, strict=True):
        yield _number(value.value if isinstance(value, Estimate) else value)
        if is_wide:
            yield from (_number(value.low), _number(value.high)) if isinstance(value, Estimate) else (None, None)


def _number(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def shown_value(value: Value, kind: Kind) -> ShownValue:
    """Format a value for the page."""
    if value is None or isinstance(value, str):
        return ShownValue(formatting.NOTHING if value is None else value, "", (value or "").casefold()[:80])
    point = value.value if isinstance(value, Estimate) else float(value)
    if math.isnan(point):
        return ShownValue(formatting.NOTHING, "", "")
    signed = kind == "difference"
    scale, digits = (100, 1) if kind in ("share", "difference") else (1, 3)
    if kind == "count":
        shown = f"{int(point):,}"
    elif kind == "p":
        shown = formatting.p_value(point)
    else:
        shown = formatting.decimal(scale * point, digits, signed=signed)
    interval = ""
    if isinstance(value, Estimate) and known(value.low):
        interval = formatting.bounds(scale * value.low, scale * value.high, digits, signed=signed)
    return ShownValue(shown, interval, f"{point:.9g}")
