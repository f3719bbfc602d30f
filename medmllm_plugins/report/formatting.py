"""Numbers and words as the report prints them."""

from __future__ import annotations

import math
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.utils.json_values import clean

NOTHING: Final = "–"
"""Printed for a number that is undefined or missing."""


def cut(value: object, length: int = 80) -> str:
    """Return text on one line of at most ``length`` characters, the last an ellipsis if something was cut off."""
    line = " ".join(clean(value)[: 4 * length].split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def percent(value: float | None, *, signed: bool = False) -> str:
    """Return a share in percent with one decimal: ``97.7%``."""
    return NOTHING if value is None or math.isnan(value) else f"{decimal(100 * value, 1, signed=signed)}%"


def decimal(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Return a number with a fixed number of decimals and a real minus sign; zero has no sign."""
    if value is None or math.isnan(value):
        return NOTHING
    shown = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not shown.strip("+-0."):
        shown = shown.lstrip("+-")
    return shown.replace("-", "\N{MINUS SIGN}")


def points(value: float | None) -> str:
    """Return the size of a difference of shares: ``12.3 points``."""
    return NOTHING if value is None or math.isnan(value) else f"{abs(100 * value):.1f} points"


def bounds(low: float, high: float, digits: int = 1, *, signed: bool = False) -> str:
    """Return the ends of an interval: ``96.2–99.0``, or ``−3.0 to +2.1`` where there are signs."""
    dash = " to " if signed or low < 0 else "–"
    return dash.join(decimal(end, digits, signed=signed) for end in (low, high))


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """Return a 95% interval of a share in percent: ``95% CI 96.2–99.0``."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval"
    return f"95% CI {bounds(100 * estimate.low, 100 * estimate.high, signed=signed)}"


def p_value(value: float) -> str:
    """Return a p-value with four decimals."""
    if math.isnan(value):
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def sentence_case(sentence: str) -> str:
    """Return a sentence with a capital first letter; the others keep their case."""
    return sentence[:1].upper() + sentence[1:]


def first_sentence(sentences: str) -> str:
    """Return the text up to the end of its first sentence; a number's decimal point ends none."""
    first, stop, _ = sentences.partition(". ")
    return first + stop.strip()
