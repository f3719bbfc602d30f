"""Hooks on a model's layers that keep one vector for each document and site of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.pooling import BatchLayout, pool_images, pool_tokens
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import Layer, layers_of
from medmllm_plugins.prompts.feature_options import ANSWER, LAST

Site = tuple[str, str]
"""A layer and a pooling."""


class ActivationHooks:
    """Hooks on the layers of a model; open while it answers, closed at the end.

    They record only while :meth:`prompt` or :meth:`answer` is entered, so that the same model can score labels and
    decode in between.

    Attributes:
        activations: what was recorded of the last batch, (B, d) float32 by site.
    """

    def __init__(self, loaded: LoadedModel, poolings: Sequence[str], *, vision_only: bool = False) -> None:
        """Put hooks on a model, or on its tower and connector alone."""
        self._loaded = loaded
        self._poolings = tuple(poolings)
        self._layout: BatchLayout | None = None
        self._mode = ""
        self._calls: dict[str, int] = {}
        self.layers = tuple(layer for layer in layers_of(loaded) if not (vision_only and layer.part == "llm"))
        self.activations: dict[Site, Tensor] = {}
        self._handles = [self._hook(layer) for layer in self.layers]

    @property
    def needs_answers(self) -> bool:
        """Whether the first token of the answer is to be recorded too."""
        return ANSWER in self._poolings

    def _hook(self, layer: Layer) -> Any:
        if layer.enters:

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self._mode:
                    self._record(layer, args[0] if args else kwargs["hidden_states"])

            return layer.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if self._mode:
                self._record(layer, output)

        return layer.module.register_forward_hook(after)

    def _record(self, layer: Layer, output: object) -> None:
        rows = layer.rows(output)
        self._calls[layer.name] = self._calls.get(layer.name, 0) + 1
        if self._mode == "answer":
            if layer.part == "llm":
                self.activations[layer.name, ANSWER] = rows[:, -1].to(torch.float32, copy=True)
            return
        assert self._layout is not None
        if layer.part == "llm":
            pooled = pool_tokens(rows, self._layout, self._poolings)
        else:
            pooled = pool_images(layer.part, rows, self._layout, self._poolings)
        self.activations |= {(layer.name, pooling): value for pooling, value in pooled.items()}

    @contextmanager
    def prompt(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Record while the prompts of a batch, with their images, go through the model once; drops the last batch.

        Raises:
            ModelError: a layer was run more or less than once, so that the records are not this batch's.
        """
        self.activations, self._calls = {}, {}
        with torch.inference_mode():
            self._layout = BatchLayout.of(self._loaded, inputs)
        with self._recording("prompt"):
            yield
        self._check_calls(self.layers)

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Record while the first token of each answer goes through the model."""
        self._calls = {}
        with self._recording("answer"):
            yield
        self._check_calls([layer for layer in self.layers if layer.part == "llm"])

    @contextmanager
    def _recording(self, mode: str) -> Iterator[None]:
        self._mode = mode
        try:
            yield
        finally:
            self._mode = ""

    def _check_calls(self, layers: Sequence[Layer]) -> None:
        if odd := [layer.name for layer in layers if self._calls.get(layer.name, 0) != 1]:
            counts = {name: self._calls.get(name, 0) for name in odd[:5]}
            raise ModelError(
                f"{type(self._loaded.model).__name__}: expected every stage to be run once a batch, got {counts}; "
                "this version of transformers runs the model differently."
            )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def lens(self, verbalizers: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], Tensor]:
        """Return logits of K labels (token ids) from the last prompt token after each block of the LLM, the logit lens.

        A block's output goes through the LLM's last norm and the rows of the output embeddings of each label: the row
        of its first token where the labels' first tokens differ, else the mean over all of its tokens. Source:
        nostalgebraist, "Interpreting GPT: the logit lens", 2020.

        Returns:
            The layers, and (layers, B, K) float32.
        """
        names = tuple(layer.name for layer in self.layers if layer.part == "llm")
        firsts = {row[0] for row in verbalizers}
        rows = [list(row[:1]) if len(firsts) == len(verbalizers) else list(row) for row in verbalizers]
        head: Any = stage_module(self._loaded.model, self._loaded.family.head)
        norm = self.layers[-1].module
        weight = torch.stack([head.weight[torch.tensor(row, device=head.weight.device)].mean(0) for row in rows])
        # The last layer is normed already. One product for all layers: each is too small to be worth a call.
        states = torch.stack([self.activations[name, LAST].to(weight.device, weight.dtype) for name in names[:-1]])
        normed = [*norm.forward(states).unbind(), self.activations[names[-1], LAST].to(weight.device)]
        logits = torch.stack([state.float() for state in normed]) @ weight.float().T
        bend = getattr(self._loaded.model.config.get_text_config(), "final_logit_softcapping", None)
        return names, logits if bend is None else torch.tanh(logits / bend) * bend
