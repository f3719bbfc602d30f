"""Questions and images of chat messages, as lmms-eval's tasks write them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.base import FewShotExample, FewShotPrompt, Question


def read_messages(
    messages: Sequence[Mapping[str, Any]], source: str, *, several_images: bool
) -> tuple[Question, list[Image.Image]]:
    """Return the question and the RGB images of chat messages.

    The turns have ``role`` and ``content``: a text, or parts of type ``text`` and ``image``. ``source`` names task
    and document for errors; models that take ``several_images`` also take solved examples as earlier turns.

    Raises:
        ModelError: the turns are not one question, with solved examples before it, about at least one image.
    """
    turns = [_read_turn(message, source) for message in messages]
    roles = [message["role"] for message in messages]
    pairs = len(messages) // 2
    if roles != ["user", "assistant"] * pairs + ["user"] or (pairs and not several_images) or not turns[-1][1]:
        raise ModelError(
            f"{source}: expected one user turn with images{', few-shot examples before it' * several_images}, got "
            f"{len(messages)} turns with {sum(len(images) for _, images in turns)} images. Choose a task that asks one "
            f"question about images{'' if several_images else ', without few-shot examples'}."
        )
    images = [image for _, turn_images in turns for image in turn_images]
    if not pairs:
        return turns[0][0], images
    examples = tuple(
        FewShotExample(question, len(turn_images), answer)
        for (question, turn_images), (answer, _) in zip(turns[:-1:2], turns[1::2], strict=True)
    )
    return FewShotPrompt(examples, turns[-1][0]), images


def _read_turn(message: Mapping[str, Any], source: str) -> tuple[str, list[Image.Image]]:
    content = message["content"]
    texts: list[str] = []
    images: list[Image.Image] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "image":
            images.append(_read_image(part["url"], source))
        else:
            raise ModelError(
                f"{source}: expected one user turn with images, got {shown(part['type'])}. Choose another task."
            )
    return "\n".join(texts), images


def _read_image(image: Any, source: str) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as opened:
            image = opened.convert("RGB")
    if not isinstance(image, Image.Image):
        raise ModelError(f"{source}: expected an image, got {shown(image)}. Choose another task.")
    return image
