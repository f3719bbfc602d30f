"""Tables of plain text, for terminals and logs."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Return rows of equal length as lines with aligned columns, two blanks between them.

    Example:
        >>> print(text_table([("layer", "accuracy"), ("llm.1", "81.0%")]))
        layer  accuracy
        llm.1  81.0%
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(indent + line for line in lines)
