"""Taps: hooks on a model's stages that keep one vector for each document and layer of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.pooling import Batch, pool_images, pool_tokens
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import Layer, layers_of
from medmllm_plugins.prompts.feature_options import ANSWER, LAST

Site = tuple[str, str]
"""A layer and a pooling."""


class ActivationHooks:
    """Hooks on the stages of a model; open while it answers, closed at the end.

    They look on only while :meth:`prompt` or :meth:`answer` is entered, so that the same model can score labels and
    decode in between.
    """

    def __init__(self, loaded: LoadedModel, poolings: Sequence[str], *, vision_only: bool = False) -> None:
        """Put hooks on a model.

        Args:
            loaded: the model.
            poolings: which to keep, see :mod:`medmllm_plugins.prompts.feature_options`.
            vision_only: leave the LLM out.
        """
        self._loaded = loaded
        self._poolings = tuple(poolings)
        self._batch: Batch | None = None
        self._mode = ""
        self._calls: dict[str, int] = {}
        self.places = tuple(place for place in layers_of(loaded) if not (vision_only and place.part == "llm"))
        self.found: dict[Site, Tensor] = {}
        self._handles = [self._tap(place) for place in self.places]

    @property
    def looks_at_answers(self) -> bool:
        """Whether the first token of the answer is to be looked at too."""
        return ANSWER in self._poolings

    def _tap(self, place: Layer) -> Any:
        if place.enters:

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self._mode:
                    self._keep(place, args[0] if args else kwargs["hidden_states"])

            return place.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if self._mode:
                self._keep(place, output)

        return place.module.register_forward_hook(after)

    def _keep(self, place: Layer, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{place.name}: expected the stage to return a tensor, found {type(output).__name__}; this version of "
                "transformers lays the model out differently."
            )
        self._calls[place.name] = self._calls.get(place.name, 0) + 1
        if self._mode == "answer":
            if place.part == "llm":
                self.found[place.name, ANSWER] = output[:, -1].to(torch.float32, copy=True)
            return
        assert self._batch is not None
        if place.part == "llm":
            pooled = pool_tokens(output, self._batch, self._poolings)
        else:
            pooled = pool_images(self._loaded, place.part, output, self._batch, self._poolings)
        self.found |= {(place.name, pooling): value for pooling, value in pooled.items()}

    @contextmanager
    def prompt(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Look on while the prompts of a batch, with their images, go through the model once; forgets the last batch.

        Raises:
            ModelError: a stage was passed more or less than once, so that what was kept is not this batch's.
        """
        self.found, self._calls = {}, {}
        with torch.inference_mode():
            self._batch = Batch.of(self._loaded, inputs)
        with self._looking("prompt"):
            yield
        self._check([place for place in self.places])

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Look on while the first token of each answer goes through the model."""
        self._calls = {}
        with self._looking("answer"):
            yield
        self._check([place for place in self.places if place.part == "llm"])

    @contextmanager
    def _looking(self, mode: str) -> Iterator[None]:
        self._mode = mode
        try:
            yield
        finally:
            self._mode = ""

    def _check(self, wanted: Sequence[Layer]) -> None:
        if odd := [place.name for place in wanted if self._calls.get(place.name, 0) != 1]:
            counts = {name: self._calls.get(name, 0) for name in odd[:5]}
            raise ModelError(
                f"{type(self._loaded.model).__name__}: expected every stage to be passed once a batch, found {counts}; "
                "this version of transformers runs the model differently."
            )

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def lens(self, verbalizers: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], Tensor]:
        """Logits of labels read off the last prompt token after each block of the LLM (the logit lens).

        What a block returns goes through the LLM's last norm and the rows of the output embeddings that stand for each
        label: the row of its first token where the labels' first tokens differ, else the mean over all of its tokens.
        Source: nostalgebraist, "Interpreting GPT: the logit lens", 2020.

        Args:
            verbalizers: token ids of K labels.

        Returns:
            The layers, and (layers, B, K) float32.
        """
        names = tuple(place.name for place in self.places if place.part == "llm")
        firsts = {row[0] for row in verbalizers}
        rows = [list(row[:1]) if len(firsts) == len(verbalizers) else list(row) for row in verbalizers]
        head: Any = self._loaded.model.get_submodule(self._loaded.family.head)
        norm = self.places[-1].module
        weight = torch.stack([head.weight[torch.tensor(row, device=head.weight.device)].mean(0) for row in rows])
        # The norm of the last layer is taken already. One product for all layers: each is too small to be worth a call.
        states = torch.stack([self.found[name, LAST].to(weight.device, weight.dtype) for name in names[:-1]])
        normed = [*norm.forward(states).unbind(), self.found[names[-1], LAST].to(weight.device)]
        return names, torch.stack([state.float() for state in normed]) @ weight.float().T
