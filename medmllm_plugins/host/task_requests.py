"""What a request of the host says: whose task asks, for what, and about which pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from PIL import Image

from medmllm_plugins.errors import ModelError
from medmllm_plugins.host.flags import check_generation
from medmllm_plugins.models.base import FewShotExample, FewShotPrompt, Question
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.prompts.feature_options import FeatureOptions
from medmllm_plugins.prompts.task_names import answering_name

Key = tuple[str, str, int, int]
"""Task, split, document and number of a request."""


def is_ours(request: Instance) -> bool:
    """Whether the task that asks reads envelopes."""
    return isinstance((request.metadata or {}).get("medmllm"), Mapping)


def features_of(request: Instance) -> FeatureOptions | None:
    """What features the task that asks wants to be kept; ``None`` for none."""
    told = (request.metadata or {}).get("medmllm")
    found = told.get("features") if isinstance(told, Mapping) else None
    return None if found is None else FeatureOptions.from_dict(found)


def attributions_of(request: Instance) -> AttributionOptions | None:
    """What the task that asks wants to be explained; ``None`` for nothing."""
    told = (request.metadata or {}).get("medmllm")
    found = told.get("attributions") if isinstance(told, Mapping) else None
    return None if found is None else AttributionOptions.from_dict(found)


def predicts_only(request: Instance) -> bool:
    """Return whether the task that asks collects answers and looks no further (``--predict_only``)."""
    return bool(getattr(getattr(request.args[1], "__self__", None), "predicts_only", False))


def key_of(request: Instance) -> Key:
    """What tells a request from every other of a run; clones of one have the same."""
    return (str(request.args[4]), str(request.args[5]), int(request.args[3]), int(request.idx))


def stored_name(request: Instance) -> str:
    """The name of a request's answer in a journal: it tells the question, the document and the settings.

    What is to be explained of an answer is left out, see :func:`medmllm_plugins.host.evaluation_run.Run.open`.
    """
    _, _, settings, doc_id, task, split = request.args
    asked = {key: value for key, value in request.metadata["medmllm"].items() if key != "attributions"}
    told = (answering_name(task), split, int(doc_id), int(request.idx), sorted(settings.items()), asked)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check_settings(requests: Iterable[Instance], model: str) -> None:
    """See that answers can be generated as the requests ask, before a model is loaded.

    Args:
        requests: all of a run.
        model: the model's name, for errors.

    Raises:
        OptionError: they cannot.
    """
    checked = set()
    for request in requests:
        kind = (str(request.args[4]), repr(request.args[2]))
        if kind not in checked:
            checked.add(kind)
            check_generation(request.args[2], f"{request.args[4]}, {model}", ours=is_ours(request))


def by_task(requests: Iterable[Instance]) -> dict[str, list[Instance]]:
    """Requests by the name of their task, in the order in which they come."""
    groups: dict[str, list[Instance]] = {}
    for request in requests:
        groups.setdefault(str(request.args[4]), []).append(request)
    return groups


def content_of(
    messages: Sequence[Mapping[str, Any]], where: str, *, several: bool
) -> tuple[Question, list[Image.Image]]:
    """Question and pictures of a request.

    Args:
        messages: the turns of a chat, as the host's tasks write them.
        where: of the request, for errors.
        several: whether solved examples may stand before the question as earlier turns.

    Raises:
        ModelError: these are other turns, or hold something else than text and images.
    """
    turns = [_turn(message, where) for message in messages]
    roles = [message["role"] for message in messages]
    pairs = len(messages) // 2
    if roles != ["user", "assistant"] * pairs + ["user"] or (pairs and not several) or not turns[-1][1]:
        raise ModelError(
            f"{where}: expected one user turn with images{', few-shot examples before it' if several else ''}, found "
            f"{len(messages)} turns with {sum(len(images) for _, images in turns)} images; choose a task that asks one "
            f"question about images{'' if several else ', without few-shot examples'}."
        )
    pictures = [image for _, images in turns for image in images]
    if not pairs:
        return turns[0][0], pictures
    examples = tuple(
        FewShotExample(turns[2 * place][0], len(turns[2 * place][1]), turns[2 * place + 1][0]) for place in range(pairs)
    )
    return FewShotPrompt(examples, turns[-1][0]), pictures


def _turn(message: Mapping[str, Any], where: str) -> tuple[str, list[Image.Image]]:
    content = message["content"]
    texts: list[str] = []
    images: list[Image.Image] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "image":
            images.append(_picture(part["url"], where))
        else:
            raise ModelError(f"{where}: expected one user turn with images, found {part['type']}; choose another task.")
    return "\n".join(texts), images


def _picture(image: Any, where: str) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as opened:
            image = opened.convert("RGB")
    if not isinstance(image, Image.Image):
        raise ModelError(f"{where}: expected an image, found {image!r}.")
    return image
