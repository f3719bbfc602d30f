"""A table of the report: shown on the page, sorts there, and lies beside it as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report import formatting
from medmllm_plugins.utils.atomic_files import csv_text

Kind: TypeAlias = Literal["text", "hash", "share", "gap", "decimal", "count", "p"]
"""What a column holds: words; a fingerprint; a share of 1 or a difference of shares, shown in percent; a plain number;
a count; a p-value."""
Value: TypeAlias = str | int | float | Estimate | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, its name in the CSV file, and what it holds."""

    title: str
    name: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Shown:
    """One cell as the page shows it: the words, the interval below them, and the number to sort by."""

    words: str
    below: str
    sort: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        stem: name of its CSV file, without the ending.
        title: what it shows.
        columns: its columns.
        rows: a value for each column; an :class:`Estimate` takes three columns of the CSV file.
        series: for each row the number of the model it is of, or ``None``.
        note: what a reader must know.
    """

    stem: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    series: tuple[int | None, ...] = ()
    note: str = ""

    def shown(self) -> list[tuple[int | None, list[Shown]]]:
        """The rows as the page shows them, each with its model's number."""
        numbers = self.series or (None,) * len(self.rows)
        return [
            (owner, [show(value, column.kind) for value, column in zip(row, self.columns, strict=True)])
            for owner, row in zip(numbers, self.rows, strict=True)
        ]

    def csv(self) -> str:
        """The table as CSV; an undefined number is an empty cell."""
        wide = [any(isinstance(row[place], Estimate) for row in self.rows) for place in range(len(self.columns))]
        header = [
            f"{column.name}{end}"
            for column, is_wide in zip(self.columns, wide, strict=True)
            for end in (("", "_low", "_high") if is_wide else ("",))
        ]
        return csv_text(header, (list(_flat(row, wide)) for row in self.rows))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types: rows as mappings from column to value, estimates as mappings."""
        names = [column.name for column in self.columns]
        rows = [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in self.rows]
        return {"title": self.title, "rows": rows}


def _flat(row: Sequence[Value], wide: Sequence[bool]) -> Iterable[str | int | float | None]:
    for value, is_wide in zip(row, wide, strict=True):
        plain = value.value if isinstance(value, Estimate) else value
        yield _number(plain)
        if is_wide:
            yield from (_number(value.low), _number(value.high)) if isinstance(value, Estimate) else (None, None)


def _number(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: Value) -> object:
    return value.to_dict() if isinstance(value, Estimate) else _number(value)


def show(value: Value, kind: Kind) -> Shown:
    """A value as people read it."""
    if value is None or isinstance(value, str):
        words = formatting.NOTHING if value is None else value
        return Shown(words, "", "" if value is None else words.casefold()[:80])
    main = value.value if isinstance(value, Estimate) else float(value)
    if math.isnan(main):
        return Shown(formatting.NOTHING, "", "")
    signed = kind == "gap"
    if kind in ("share", "gap"):
        words = formatting.percent(main, signed=signed).removesuffix("\N{NO-BREAK SPACE}%")
    elif kind == "count":
        words = f"{int(main):,}"
    else:
        words = formatting.p_value(main) if kind == "p" else formatting.decimal(main, 3)
    below = ""
    if isinstance(value, Estimate) and not math.isnan(value.low):
        scale, places = (100, 1) if kind in ("share", "gap") else (1, 3)
        below = " to ".join(formatting.decimal(scale * end, places, signed=signed) for end in (value.low, value.high))
    return Shown(words, below, f"{main:.9g}")
