"""Counts, enumerations and tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def quantity(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 document``, ``3,280 documents``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words as an enumeration: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, every column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
