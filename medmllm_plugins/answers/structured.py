"""Read answers that are data: a JSON object with a class under a known key, and lists of a probability per class."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from medmllm_plugins.answers.lexicon import Mention

_KEYS: Final = (
    "final answer",
    "answer",
    "prediction",
    "predicted class",
    "predicted category",
    "predicted label",
    "classification",
    "class",
    "category",
    "label",
    "diagnosis",
    "primary diagnosis",
    "final diagnosis",
    "conclusion",
    "result",
    "impression",
    "答案",
    "分类",
    "类别",
    "诊断",
)
"""Keys whose value is the answer, the most decisive first."""
_MAX_OBJECT: Final = 20_000
_NUMBER = re.compile(
    r"[\s\"')]{0,4}(?:probability|confidence|likelihood|score|prob|p)?[\s\"':=(~≈|-]{1,6}(?:about |approximately "
    r"|around )?"
    r"(?P<value>\d{1,3}(?:[.,]\d+)?|[.]\d+) ?(?P<percent>%|percent\b)?(?![\w/-]|[.,]\d)(?! ?(?:mm|cm|ml|hu|years?"
    r"|slices?))"
)


def json_answers(text: str) -> Iterator[str]:
    """Yield the texts in the last JSON objects of a folded text, the values of the most decisive keys first.

    An object of probabilities, or of true and false, is not read here: its text is a list of classes with figures.
    """
    for candidate in reversed(list(_objects(text))):
        by_key = {re.sub(r"[\s_-]+", " ", key).strip(): value for key, value in candidate.items()}
        for key in (*(key for key in _KEYS if key in by_key), *(key for key in by_key if key not in _KEYS)):
            value = by_key[key]
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if isinstance(value, str) and value.strip():
                yield value


def _objects(text: str) -> Iterator[dict[str, object]]:
    """Yield the JSON objects of a text, those inside others left out."""
    decoder, start = json.JSONDecoder(), text.find("{")
    tries = 0
    while start >= 0 and tries < 20:
        tries += 1
        try:
            value, end = decoder.raw_decode(text[start : start + _MAX_OBJECT])
        except (ValueError, RecursionError):
            end = 1
        else:
            if isinstance(value, dict):
                yield value
        start = text.find("{", start + end)


def most_probable(text: str, mentions: Sequence[Mention]) -> int | None:
    """Return the class with the largest figure in a list of a probability per class.

    Args:
        text: cleaned text.
        mentions: its mentions, in order.

    Returns:
        The index of the class; ``None`` unless at least two classes have a figure, all are probabilities or
        percentages, and one is larger than all others.
    """
    figures: dict[int, tuple[float, bool]] = {}
    for mention in mentions:
        match = _NUMBER.match(text, mention.end)
        if match is None or len(mention.owners) != 1:
            continue
        value = float(match["value"].replace(",", "."))
        figures[mention.owners[0]] = (value, bool(match["percent"]))
    return _largest(figures) if len(figures) > 1 else None


def _largest(figures: Mapping[int, tuple[float, bool]]) -> int | None:
    percent = any(marked for _, marked in figures.values())
    values = {owner: value for owner, (value, _) in figures.items()}
    total = math.fsum(values.values())
    if max(values.values()) > (100 if percent else 1) and not 95 <= total <= 105:
        return None
    best = max(values, key=lambda owner: values[owner])
    return best if sum(value == values[best] for value in values.values()) == 1 else None
