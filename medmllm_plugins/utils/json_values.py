"""Values read from JSON that may hold anything: a file that was damaged, or that another program wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(value: object) -> str:
    """Return a value as text that UTF-8, HTML and SVG can all hold.

    Lone surrogates and control characters are replaced, and so are characters that change the direction of writing, by
    which a name could reverse the sentence behind it.
    """
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: object) -> float:
    """Return a finite number as float, and NaN for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        result = float(value)
    except OverflowError:  # JSON bounds no integer
        return math.nan
    return result if math.isfinite(result) else math.nan


def whole(value: object) -> int | None:
    """Return a number as integer, and ``None`` for any other value."""
    result = number(value)
    return None if math.isnan(result) else int(result)


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, and an empty one for any other value."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[Any]:
    """Return a JSON array, and an empty one for any other value."""
    return value if isinstance(value, list) else []
