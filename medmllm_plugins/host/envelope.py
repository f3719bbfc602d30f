"""What our wrapper hands from the model to the task: a JSON string, since the host passes only text along."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

VERSION = 1
_TAG_SIGNS = re.compile(r"[<>\[\]{}|/◁▷]")
"""What tags around reasoning are made of."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer to one document.

    Attributes:
        text: the generated text.
        scores: log p(label | prompt, image) for each label in class order, in nats; ``None`` when the model
            gave none, as every model but ours does.
        tokens: number of tokens of each label.
        blank: scores of the labels for the same question about a blank image.
    """

    text: str
    scores: tuple[float, ...] | None = None
    tokens: tuple[int, ...] | None = None
    blank: tuple[float, ...] | None = None


def pack(reply: Reply) -> str:
    """Serialise a reply; the response cache stores it as it is, so it holds plain JSON and nothing else."""
    scores = None if reply.scores is None else [float(score) for score in reply.scores]
    told: dict[str, Any] = {"scores": scores}
    if reply.tokens is not None:
        told["tokens"] = list(reply.tokens)
    if reply.blank is not None:
        told["blank"] = [float(score) for score in reply.blank]
    # The host cuts reasoning out of a response (--reasoning_tags) without knowing that it is JSON, and of a text with
    # a closing tag alone it drops all that stands before: the envelope too. So tags are escaped in it.
    text = _TAG_SIGNS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(reply.text, ensure_ascii=False))
    return f'{{"medmllm": {VERSION}, "text": {text}, {json.dumps(told)[1:]}'


def unpack(response: str) -> Reply:
    """Read a reply back; any text that is not one of our envelopes is a plain answer.

    Another model may well answer in JSON, so an envelope is recognised by its whole shape.
    """
    if not response.startswith('{"medmllm"'):
        return Reply(response)
    try:
        found = json.loads(response)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nesting without end
        return Reply(response)
    if not {"medmllm", "text", "scores"} <= set(found) <= {"medmllm", "text", "scores", "tokens", "blank"}:
        return Reply(response)
    scores, tokens, blank = found["scores"], found.get("tokens"), found.get("blank")
    if (
        type(found["medmllm"]) is not int
        or found["medmllm"] != VERSION
        or not isinstance(found["text"], str)
        or not (scores is None or _are_scores(scores))
        or not (tokens is None or _are_counts(tokens))
        or not (blank is None or _are_scores(blank))
        or any(beside is not None and len(beside) != len(scores or ()) for beside in (tokens, blank))
    ):
        return Reply(response)
    several = (None if values is None else tuple(values) for values in (scores, tokens, blank))
    return Reply(found["text"], *several)


def _are_scores(found: object) -> bool:
    """Whether this is what :func:`pack` writes for scores: a list of floating-point numbers."""
    return isinstance(found, list) and all(type(score) is float for score in found)


def _are_counts(found: object) -> bool:
    return isinstance(found, list) and all(type(count) is int and count > 0 for count in found)
