"""What our wrapper hands from the model to the task: a JSON string, since the host passes only text along."""

from __future__ import annotations

import json
from dataclasses import dataclass

VERSION = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer to one document.

    Attributes:
        text: the generated text.
        scores: log p(label | prompt, image) for each label in class order, in nats; ``None`` when the model
            gave none, as every model but ours does.
    """

    text: str
    scores: tuple[float, ...] | None = None


def pack(reply: Reply) -> str:
    """Serialise a reply; the response cache stores it as it is, so it holds plain JSON and nothing else."""
    scores = None if reply.scores is None else [float(score) for score in reply.scores]
    return json.dumps({"medmllm": VERSION, "text": reply.text, "scores": scores}, ensure_ascii=False)


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
    if set(found) != {"medmllm", "text", "scores"} or type(found["medmllm"]) is not int or found["medmllm"] != VERSION:
        return Reply(response)
    scores = found["scores"]
    if not isinstance(found["text"], str) or not (scores is None or _are_scores(scores)):
        return Reply(response)
    return Reply(found["text"], None if scores is None else tuple(scores))


def _are_scores(found: object) -> bool:
    """Whether this is what :func:`pack` writes for scores: a list of floating-point numbers."""
    return isinstance(found, list) and all(type(score) is float for score in found)
