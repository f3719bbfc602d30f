"""Models that are wrong in one way each, as the loaders of a plugin."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.llava import Llava
from medmllm_plugins.models.families.llava_next import LlavaNext
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions


def right(options: LoadOptions) -> ChatModel:
    return ChatModel(open_native(options))


def does_not_load(options: LoadOptions) -> ChatModel:
    raise ValueError("no such file")


def in_training_mode(options: LoadOptions) -> ChatModel:
    model = right(options)
    model.model.train()
    return model


def with_a_random_head(options: LoadOptions) -> ChatModel:
    model = right(options)
    with torch.no_grad():
        model.model.lm_head.weight.add_(torch.randn_like(model.model.lm_head.weight))
    return model


def that_calls_home(options: LoadOptions) -> ChatModel:
    with suppress(OSError):
        socket.create_connection(("198.51.100.1", 443), timeout=0.1)
    return right(options)


class _PlainErrors(ChatModel):
    def prepare(self, questions: Sequence[Any], images: Sequence[Any]) -> dict[str, Tensor]:
        for image in images:
            if isinstance(image, str):
                raise TypeError("not an image")
        return super().prepare(questions, images)


def with_plain_errors(options: LoadOptions) -> ChatModel:
    return _PlainErrors(open_native(options))


class _PaddingSeen(ChatModel):
    def prepare(self, questions: Sequence[Any], images: Sequence[Any]) -> dict[str, Tensor]:
        inputs = super().prepare(questions, images)
        return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def that_sees_padding(options: LoadOptions) -> ChatModel:
    return _PaddingSeen(open_native(options))


class _Late(Llava):
    def forward_prompt(self, model: Any, inputs: Any, **options: Any) -> tuple[Any, Tensor]:
        output, following = super().forward_prompt(model, inputs, **options)
        return output, following + 7


def with_late_answers(options: LoadOptions) -> ChatModel:
    return _with_family(options, _Late())


class _Ends(ChatModel):
    """Ends an answer at its third token."""

    def generate(self, *arguments: Any, max_new_tokens: int, **options: Any) -> list[Generation]:
        return super().generate(*arguments, max_new_tokens=min(max_new_tokens, 3), **options)


def that_stops_early(options: LoadOptions) -> ChatModel:
    return _Ends(open_native(options))


class _Blind(ChatModel):
    def prepare(self, questions: Sequence[Any], images: Sequence[Any]) -> dict[str, Tensor]:
        inputs = super().prepare(questions, images)
        return {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}


def that_is_blind(options: LoadOptions) -> ChatModel:
    return _Blind(open_native(options))


def with_another_fingerprint(options: LoadOptions) -> ChatModel:
    model = right(options)
    model.__dict__["fingerprint"] = f"{random.getrandbits(64):x}"
    return model


class _Tiring(ChatModel):
    """Keeps a count from one batch to the next, once it has answered more than one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches = itertools.count()

    def generate(self, questions: Any, images: Any, **options: Any) -> list[Generation]:
        late = next(self.batches) >= 3
        results = super().generate(questions, images, **options)
        return [replace(item, text=item.text + " again") if late else item for item in results]


def that_tires(options: LoadOptions) -> ChatModel:
    return _Tiring(open_native(options))


class _Elsewhere(Llava):
    connector = "model.projector"


def with_a_wrong_stage(options: LoadOptions) -> ChatModel:
    return _with_family(options, _Elsewhere())


class _HalfTheBlocks(Llava):
    llm_blocks = "model.vision_tower.encoder.layers"


def with_the_towers_blocks(options: LoadOptions) -> ChatModel:
    return _with_family(options, _HalfTheBlocks())


class _Twice(ChatModel):
    def prefill(self, inputs: Any) -> Any:
        super().prefill(inputs)
        return super().prefill(inputs)


def that_runs_twice(options: LoadOptions) -> ChatModel:
    return _Twice(open_native(options))


class _OtherPass(ChatModel):
    """Shows hooks a pass over a blank image."""

    def generate(self, questions: Any, images: Any, *, watch: Any = None, **options: Any) -> list[Generation]:
        if watch is not None:
            inputs = self.prepare(questions, images)
            inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
            with watch.prompt(inputs):
                self.prefill(inputs)
        return super().generate(questions, images, **options)


def that_shows_hooks_another_pass(options: LoadOptions) -> ChatModel:
    return _OtherPass(open_native(options))


class _Mixed(LlavaNext):
    def rows_per_document(self, model: Any, stage: Any, inputs: Any) -> list[int]:
        counts = super().rows_per_document(model, stage, inputs)
        return [*counts[1:], counts[0]]


def that_mixes_documents(options: LoadOptions) -> ChatModel:
    return _with_family(options, _Mixed())


class _NoGradient(Llava):
    def forward_prompt(self, model: Any, inputs: Any, **options: Any) -> tuple[Any, Tensor]:
        with torch.no_grad():
            return super().forward_prompt(model, inputs, **options)


def without_gradients(options: LoadOptions) -> ChatModel:
    return _with_family(options, _NoGradient())


class _Transposed(Llava):
    def vision_patches(self, model: Any, inputs: Any, layer: str) -> Any:
        rows = super().vision_patches(model, inputs, layer)
        return np.concatenate([rows[:1], rows[1:].reshape(4, 4, 1).transpose(1, 0, 2).reshape(-1, 1)])


def with_a_transposed_grid(options: LoadOptions) -> ChatModel:
    return _with_family(options, _Transposed())


def _with_family(options: LoadOptions, family: Llava) -> ChatModel:
    model = right(options)
    model.family = family
    return model
