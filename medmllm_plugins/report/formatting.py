"""Numbers and strings as people read them."""

from __future__ import annotations

import math
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.utils.json_values import clean

_SPACE: Final = "\N{NO-BREAK SPACE}"
NOTHING: Final = "–"
"""Stands for a number that is not defined or not there."""


def cut(value: object, length: int = 80) -> str:
    """Text on one line of at most ``length`` characters, the last an ellipsis where something was cut off."""
    text = clean(value)[: 4 * length]
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share in percent with one decimal, ``97.7 %``, that no line break divides."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{_minus(f'{100 * value:+.1f}' if signed else f'{100 * value:.1f}')}{_SPACE}%"


def decimal(value: float | None, places: int = 2, *, signed: bool = False) -> str:
    """A number with so many decimals."""
    if value is None or math.isnan(value):
        return NOTHING
    return _minus(f"{value:+.{places}f}" if signed else f"{value:.{places}f}")


def points(value: float | None) -> str:
    """A difference of shares in percentage points, without a sign: ``12.3 points``."""
    return NOTHING if value is None or math.isnan(value) else f"{abs(100 * value):.1f}{_SPACE}points"


def interval(found: Estimate, *, signed: bool = False) -> str:
    """The ends of an interval in percent: ``95 % CI 96.2 to 98.9``; says so where there is none."""
    if math.isnan(found.low) or math.isnan(found.high):
        return "no interval"
    low, high = (f"{100 * end:+.1f}" if signed else f"{100 * end:.1f}" for end in (found.low, found.high))
    return f"95{_SPACE}%{_SPACE}CI {_minus(low)}{_SPACE}to{_SPACE}{_minus(high)}"


def turned(found: Estimate) -> Estimate:
    """A difference seen from the other side."""
    return Estimate(-found.value, -found.high, -found.low)


def p_value(value: float) -> str:
    """A p-value to four decimals."""
    if math.isnan(value):
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _minus(text: str) -> str:
    """With a minus sign in place of a hyphen, and no sign before nothing."""
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
