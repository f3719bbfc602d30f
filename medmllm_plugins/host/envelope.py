"""The envelope in which a reply travels from the model to the task: a JSON string, since the host passes only text."""

from __future__ import annotations

import json
import re
from typing import Any

from medmllm_plugins.runtime.journal import Reply

VERSION = 1
_TAG_SIGNS = re.compile(r"[<>\[\]{}|/◁▷]")
"""What tags around reasoning are made of."""


def pack(reply: Reply) -> str:
    """Serialise a reply; the response cache stores it as it is, so it holds plain JSON and nothing else."""
    scores = None if reply.scores is None else [float(score) for score in reply.scores]
    fields: dict[str, Any] = {"scores": scores}
    if reply.label_tokens is not None:
        fields["tokens"] = list(reply.label_tokens)
    if reply.blank_scores is not None:
        fields["blank"] = [float(score) for score in reply.blank_scores]
    # The host cuts reasoning out of a response (--reasoning_tags) without knowing that it is JSON, and of a text with
    # a closing tag alone it drops all that stands before: the envelope too. So tags are escaped in it.
    text = _TAG_SIGNS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(reply.text, ensure_ascii=False))
    return f'{{"medmllm": {VERSION}, "text": {text}, {json.dumps(fields)[1:]}'


def unpack(response: str) -> Reply:
    """Read a reply back; any text that is not one of our envelopes is a plain answer.

    Another model may well answer in JSON, so an envelope is recognised by its whole shape.
    """
    if not response.startswith('{"medmllm"'):
        return Reply(response)
    try:
        fields = json.loads(response)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nesting without end
        return Reply(response)
    if not {"medmllm", "text", "scores"} <= set(fields) <= {"medmllm", "text", "scores", "tokens", "blank"}:
        return Reply(response)
    scores, tokens, blank = fields["scores"], fields.get("tokens"), fields.get("blank")
    if (
        type(fields["medmllm"]) is not int
        or fields["medmllm"] != VERSION
        or not isinstance(fields["text"], str)
        or not (scores is None or _are_scores(scores))
        or not (tokens is None or _are_counts(tokens))
        or not (blank is None or _are_scores(blank))
        or any(values is not None and len(values) != len(scores or ()) for values in (tokens, blank))
    ):
        return Reply(response)
    scores, tokens, blank = (None if values is None else tuple(values) for values in (scores, tokens, blank))
    return Reply(fields["text"], scores, tokens, blank)


def _are_scores(value: object) -> bool:
    """Return whether this is what :func:`pack` writes for scores: a list of floating-point numbers."""
    return isinstance(value, list) and all(type(score) is float for score in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(count) is int and count > 0 for count in value)
