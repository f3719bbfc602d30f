"""Stages of a batch of images of different sizes, divided: each document gets what it gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.pooling import BatchLayout, pool_images
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import select_rows, stage_module
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.testing.tiny_families import FAMILIES as TINY
from medmllm_plugins.testing.tiny_families import write_family

QUESTIONS = ["What?", "Is it benign or malignant, and why?", "a"]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 60, 40), picture(1, 64, 64), picture(2, 50, 90)]


@pytest.fixture(scope="module", params=list(TINY))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = write_family(request.param, tmp_path_factory.mktemp(request.param))
    return ChatModel(open_native(LoadOptions(str(folder), device="cpu")))


def watched(
    model: ChatModel, questions: list[str], images: list[Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the last vision block and the connector return for a batch, and the batch's input."""
    blocks: Any = stage_module(model.model, model.family.vision_blocks)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(
                name, model.family.to_rows(name, out[0] if isinstance(out, tuple) else out)
            )
        )
        for name, module in (("vision", blocks[1]), ("connector", stage_module(model.model, model.family.connector)))
    ]
    inputs = model.prepare(questions, images)
    model.prefill(inputs)
    for hook in hooks:
        hook.remove()
    return seen, inputs


def by_document(model: ChatModel, stage: Any, output: torch.Tensor, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """A stage's output of a batch, (n, d) of each document, class tokens and padding left out."""
    output = select_rows(output, model.family.row_mask(model.model, stage, inputs))
    if stage == "vision" and not model.family.flat:
        output = output[:, model.family.class_tokens(model.model) :]
    parts = torch.split(output, model.rows_per_document(stage, inputs))
    return [part.reshape(-1, part.shape[-1]) for part in parts]


def test_each_document_gets_what_it_gets_alone(model: ChatModel) -> None:
    seen, inputs = watched(model, QUESTIONS, IMAGES)
    for name in ("vision", "connector"):
        parts = by_document(model, name, seen[name], inputs)
        assert len(parts) == 3
        for question, image, part in zip(QUESTIONS, IMAGES, parts, strict=True):
            alone, own = watched(model, [question], [image])
            (expected,) = by_document(model, name, alone[name], own)
            torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)
    # These leave padding out and end their lines with a token.
    if model.model.config.model_type not in ("llava_next", "llava_onevision"):
        tokens = [len(part) for part in by_document(model, "connector", seen["connector"], inputs)]
        assert tokens == model.image_positions(inputs).sum(1).tolist()


def test_several_images_of_a_document_stay_together(model: ChatModel) -> None:
    if model.model.config.model_type in ("llava", "llava_next", "paligemma"):
        pytest.skip("a template that takes several images: these families' are for one")
    seen, inputs = watched(model, QUESTIONS[:2], [IMAGES[:2], IMAGES[2:]])
    first, second = by_document(model, "vision", seen["vision"], inputs)
    alone, own = watched(model, QUESTIONS[:1], [IMAGES[:2]])
    torch.testing.assert_close(first, by_document(model, "vision", alone["vision"], own)[0])
    alone, own = watched(model, QUESTIONS[1:2], [IMAGES[2:]])
    torch.testing.assert_close(second, by_document(model, "vision", alone["vision"], own)[0])


def test_an_output_of_another_length_is_an_error(model: ChatModel, tmp_path: Path) -> None:
    seen, inputs = watched(model, QUESTIONS, IMAGES)
    with pytest.raises(ModelError, match="rows from the vision stage, by the batch's input, got"):
        pool_images("vision", seen["vision"][:-1], BatchLayout.of(model, inputs), ("mean",))
