"""Tables of the report: shown and sortable on the page, written as CSV beside it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import yaml

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report import formatting
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import template_source, texts
from medmllm_plugins.results.report_records import TableRecord
from medmllm_plugins.utils.atomic_files import csv_text

Kind: TypeAlias = Literal["text", "hash", "share", "difference", "decimal", "count", "p"]
"""Type of a column's values: text; a fingerprint; a share of 1, or a difference of two shares, shown in percent; a
number with decimals; a count; a p-value."""
Value: TypeAlias = str | int | float | Estimate | None
Row: TypeAlias = tuple[TaskResult | Subject, Sequence[Value]]
"""The result that a row is about, or the model if it is about all of its runs; and the values without its name."""
ORIGIN_COLUMNS: Final = ("run", "data_set")
"""First columns of each CSV file."""


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
        origins: run folder and data set of each row, which the page shows elsewhere.
    """

    stem: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    series: tuple[int, ...] = ()
    note: str = ""
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The table's name, without that of the data set."""
        return self.stem.rpartition(".")[2]

    def csv_columns(self) -> list[tuple[Column, str]]:
        """Return the columns of the CSV file, each with the ending of its name, ``_low`` or ``_high`` if any."""
        wide = self._wide()
        return [
            *((Column(name, name), "") for name in self._origin_columns()),
            *(
                (column, suffix)
                for column, is_wide in zip(self.columns, wide, strict=True)
                for suffix in (("", "_low", "_high") if is_wide else ("",))
            ),
        ]

    def _origin_columns(self) -> tuple[str, ...]:
        names = {column.name for column in self.columns}
        return tuple(name for name in ORIGIN_COLUMNS if name not in names) if self.origins else ()

    def _wide(self) -> list[bool]:
        return [any(isinstance(row[index], Estimate) for row in self.rows) for index in range(len(self.columns))]

    def _origin_cells(self) -> list[tuple[str, ...]]:
        names = self._origin_columns()
        if not names:
            return [()] * len(self.rows)
        return [tuple(origin[ORIGIN_COLUMNS.index(name)] for name in names) for origin in self.origins]

    def shown(self) -> list[tuple[int | None, list[ShownValue]]]:
        """Return the rows as the page shows them, each with its model's number."""
        numbers = self.series or (None,) * len(self.rows)
        return [
            (series, [shown_value(value, column.kind) for value, column in zip(row, self.columns, strict=True)])
            for series, row in zip(numbers, self.rows, strict=True)
        ]

    def selection(
        self,
        *,
        columns: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
        title: str = "",
        note: str | None = None,
    ) -> Table:
        """Return the table as a part of the page shows it, where the CSV file of the same stem has all.

        Args:
            columns: names of the columns to show, as far as there are any; all by default.
            rows: indices of the rows to show, in their order; all by default.
            title: another title.
            note: another note.
        """
        names = [column.name for column in self.columns]
        kept = list(range(len(names))) if columns is None else [names.index(name) for name in columns if name in names]
        indices = range(len(self.rows)) if rows is None else rows
        return replace(
            self,
            title=title or self.title,
            note=self.note if note is None else note,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(tuple(self.rows[row][index] for index in kept) for row in indices),
            series=tuple(self.series[row] for row in indices) if self.series else (),
            origins=tuple(self.origins[row] for row in indices) if self.origins else (),
        )

    def csv(self) -> str:
        """Return the table as CSV; an undefined number is an empty cell."""
        wide = self._wide()
        header = [f"{column.name}{suffix}" for column, suffix in self.csv_columns()]
        pairs = zip(self._origin_cells(), self.rows, strict=True)
        return csv_text(header, ([*origin, *_flat(row, wide)] for origin, row in pairs))

    def record(self) -> TableRecord:
        """Return the table as ``report.json`` has it: rows map column names to values."""
        names = [*self._origin_columns(), *(column.name for column in self.columns)]
        rows = tuple(
            dict(zip(names, (*origin, *map(_cell, row)), strict=True))
            for origin, row in zip(self._origin_cells(), self.rows, strict=True)
        )
        return TableRecord(self.title, rows)


@functools.cache
def _declared() -> dict[str, dict[str, Any]]:
    declared: dict[str, dict[str, Any]] = yaml.safe_load(template_source("columns.yaml"))
    return declared


def read_columns(name: str) -> tuple[Column, ...]:
    """Return the columns of a table as ``templates/columns.yaml`` declares them."""
    declared = _declared()[name]
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
    pairs = [(*_origin(about), values) for about, values in rows]
    title, note = texts("tables.txt.jinja", name, data_set=dataset.title, **values)
    return Table(
        stem=f"{dataset.name}.{name}",
        title=title,
        columns=(Column("Model", "model"), *(read_columns(name) if columns is None else columns)),
        rows=tuple((subject.label, *row) for subject, _, row in pairs),
        series=tuple(subject.number for subject, *_ in pairs),
        note=note,
        origins=tuple((run, dataset.name) for _, run, _ in pairs),
    )


def _origin(about: TaskResult | Subject) -> tuple[Subject, str]:
    """Return the model that a row is about, and the names of its run folders."""
    if isinstance(about, TaskResult):
        return about.subject, about.run.name
    return about, ", ".join(run.name for run in about.runs)


def _flat(row: Sequence[Value], wide: Sequence[bool]) -> Iterator[str | int | float | None]:
    for value, is_wide in zip(row, wide, strict=True):
        yield _defined(value.value if isinstance(value, Estimate) else value)
        if is_wide:
            yield from (_defined(value.low), _defined(value.high)) if isinstance(value, Estimate) else (None, None)


def _defined(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(value: Value) -> Value:
    return value if isinstance(value, Estimate) else _defined(value)


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
