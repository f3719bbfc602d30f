"""Numbers and strings as people read them, whatever a document holds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from medmllm_plugins.metrics.intervals import Estimate

_SPACE: Final = "\N{NO-BREAK SPACE}"
NOTHING: Final = "–"
"""Stands for a number that is not defined or not there."""
UNKNOWN: Final = Estimate(math.nan, math.nan, math.nan)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(value: object) -> str:
    """A value as text that UTF-8, HTML and SVG can all hold: lone surrogates and control characters are replaced.

    So are those that turn the direction of writing, by which a name could reverse the sentence and numbers behind it.
    """
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def cut(value: object, length: int = 80) -> str:
    """Text on one line of at most ``length`` characters, the last an ellipsis where something was cut off."""
    text = clean(value)[: 4 * length]
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def number(value: object) -> float:
    """A number read from JSON; NaN for anything that is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:  # JSON bounds no integer
        return math.nan
    return found if math.isfinite(found) else math.nan


def whole(value: object) -> int | None:
    """A whole number read from JSON; ``None`` for anything else."""
    found = number(value)
    return None if math.isnan(found) else int(found)


def estimate(told: object) -> Estimate:
    """A figure with its interval, read from JSON; NaN for what is not there."""
    if not isinstance(told, Mapping):
        return UNKNOWN
    return Estimate(number(told.get("value")), number(told.get("low")), number(told.get("high")))


def known(found: Estimate | float | None) -> bool:
    """Whether there is a number at all."""
    value = found.value if isinstance(found, Estimate) else found
    return value is not None and not math.isnan(value)


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


def quantity(count: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 document``, ``3,280 documents``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: list[str]) -> str:
    """Words as an enumeration: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[Any]:
    """A JSON array; an empty one for anything else."""
    return value if isinstance(value, list) else []


def _minus(text: str) -> str:
    """With a minus sign in place of a hyphen, and no sign before nothing."""
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
