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
    return json.dumps(
        {"medmllm": VERSION, "text": reply.text, "scores": None if reply.scores is None else list(reply.scores)},
        ensure_ascii=False,
    )


def unpack(response: str) -> Reply:
    """Read a reply back; any text that is not one of our envelopes is a plain answer.

    Another model may well answer in JSON, so an envelope is recognised by its whole shape.
    """
    if not response.startswith('{"medmllm"'):
        return Reply(response)
    try:
        found = json.loads(response)
    except json.JSONDecodeError:
        return Reply(response)
    if found.get("medmllm") != VERSION or not isinstance(found.get("text"), str):
        return Reply(response)
    scores = found.get("scores")
    return Reply(found["text"], None if scores is None else tuple(float(score) for score in scores))
