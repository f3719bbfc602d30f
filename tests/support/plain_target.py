"""The target of attributions, computed by plain calls of a model, for Captum to be called on directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import layers_of

QUESTION = "Benign?"
LABELS = ("benign", "malignant", "normal")
LAYERS = ("vision.00", "connector", "llm.00")
STEPS = 5
HOW = MethodConfig(steps=STEPS, samples=2, seed=3)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
GREY = Image.new("RGB", IMAGE.size, (128, 128, 128))
TARGET = Target.of_label("m", ("b", "m", "n"), LABELS)


class PlainTarget:
    """The target by calls of the model itself, without a cache: each label behind the prompt is a row of its own.

    A module that passes its input on stands where a layer is, for Captum to hook.
    """

    def __init__(self, loaded: LoadedModel, labels: Sequence[str] = LABELS, wanted: int = 1) -> None:
        self.loaded, self.wanted = loaded, wanted
        self.inputs = loaded.prepare([QUESTION], [IMAGE])
        self.pixels = self.inputs["pixel_values"]
        self.blank = loaded.prepare([QUESTION], [GREY])["pixel_values"]
        self.prompt = self.inputs["input_ids"][0]
        self.length = len(self.prompt)
        self.labels = loaded.label_ids(QUESTION, list(labels))
        self.image = loaded.image_positions(self.inputs)[0]
        self.rows = 0

    def scores(self, pixels: Tensor, prompts: Tensor | None = None) -> Tensor:
        """(rows, K), from pixels (rows, …) and prompts (rows, L)."""
        many, longest, model = len(self.labels), max(map(len, self.labels)), self.loaded.model
        self.rows = len(pixels)
        prompts = self.prompt.expand(self.rows, -1) if prompts is None else prompts
        ends = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in self.labels])
        there = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in self.labels])
        given: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if name == "pixel_values":
                given[name] = pixels.repeat_interleave(many, 0).flatten(0, 1)
            elif name == "input_ids":
                given[name] = torch.cat([prompts.repeat_interleave(many, 0), ends.repeat(self.rows, 1)], 1)
            elif name == "attention_mask":
                ones = torch.ones(self.rows * many, self.length, dtype=torch.long)
                given[name] = torch.cat([ones, there.repeat(self.rows, 1)], 1)
            elif name in ("token_type_ids", "mm_token_type_ids"):
                # PaliGemma reads its prompt, type 0, in both directions.
                kind = 1 if model.config.model_type == "paligemma" else 0
                tail = torch.full((self.rows * many, longest), kind)
                given[name] = torch.cat([value.repeat(self.rows * many, 1), tail], 1)
            else:
                given[name] = value.repeat(self.rows * many, *[1] * (value.dim() - 1))
        inner: Any = model.model
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = None
        else:
            first = 1 if model.config.model_type == "paligemma" else 0
            given["position_ids"] = (torch.arange(self.length + longest) + first).expand(self.rows * many, -1)
        logits = model(**given, use_cache=False).logits.log_softmax(-1)
        logits = logits[:, self.length - 1 : -1].view(self.rows, many, longest, -1)
        log_probabilities = logits.gather(3, ends.expand(self.rows, -1, -1)[..., None]).squeeze(3)
        return (log_probabilities * there).sum(-1)

    def __call__(self, pixels: Tensor, prompts: Tensor | None = None) -> Tensor:
        chance = self.scores(pixels, prompts)
        others = [place for place in range(len(self.labels)) if place != self.wanted]
        return chance[:, self.wanted] - chance[:, others].exp().sum(1).log()

    def own_rows(self, layer: str, size: int) -> Tensor:
        """Which of the rows of a layer, (size,), belong to the image; Gemma 4 pads its patches."""
        if layer.startswith("llm"):
            return self.image
        if layer.startswith("vision") and "image_position_ids" in self.inputs:
            return (self.inputs["image_position_ids"][..., 0] >= 0).flatten()
        return torch.ones(size, dtype=torch.bool)

    @contextmanager
    def tapped(self, layer: str, *, channels_first: bool = False) -> Iterator[nn.Identity]:
        """A module that is given (rows, n, d) at a layer, or of the image's rows (rows, d, n)."""
        module: Any = next(place.module for place in layers_of(self.loaded) if place.name == layer)
        usual, tap = module.forward, nn.Identity()

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = usual(*args, **kwargs)
            first = output[0] if isinstance(output, tuple) else output
            grouped = first.reshape(self.rows, len(self.labels), -1, first.shape[-1])
            size = self.length if layer.startswith("llm") else grouped.shape[2]
            held, after = grouped[:, 0, :size], grouped[:, :, size:]
            if channels_first:
                own = self.own_rows(layer, size)
                new = tap(held[:, own].transpose(1, 2)).transpose(1, 2)
                held = held.masked_scatter(own[:, None].expand_as(held), new)
            else:
                held = tap(held)
            whole = torch.cat([held[:, None].expand(-1, len(self.labels), -1, -1), after], 2).reshape(first.shape)
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        module.forward = forward
        try:
            yield tap
        finally:
            del module.forward


def answered_input(model: LoadedModel) -> AttributionInput:
    """An input of a model that has answered before, as in an evaluation; what it keeps must not disturb gradients."""
    model.generate([QUESTION], [IMAGE], max_new_tokens=2, labels=list(LABELS))
    return AttributionInput(model, QUESTION, IMAGE, TARGET, batch=3)


def close(values: Tensor, wanted: Tensor, share: float = 1e-4) -> None:
    """Equal to a share of the largest value; where all are 0, equal."""
    wanted = wanted.detach()
    assert values.shape == wanted.shape
    torch.testing.assert_close(values, wanted.to(values.dtype), rtol=0, atol=share * float(wanted.abs().max()))


def gap_is(scores: Scores, total: Tensor, difference: Tensor) -> None:
    """The gap, worked out by hand."""
    wanted = abs(float(total.sum()) - float(difference)) / max(abs(float(difference)), 0.1)
    assert scores.gap == pytest.approx(wanted, abs=1e-3, rel=1e-2)


def captum(plain: PlainTarget, layer: str, make: Callable[[Any], Tensor], **how: Any) -> Tensor:
    with plain.tapped(layer, **how) as tap:
        return make(tap)


def at_layers(
    case: AttributionInput, method: layer_methods.Method, layers: Sequence[str] = LAYERS, how: MethodConfig = HOW
) -> dict[str, Scores]:
    scores = method(case, layers, how)
    assert list(scores) == list(layers)
    return scores
