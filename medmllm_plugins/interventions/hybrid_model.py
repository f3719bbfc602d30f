"""Two models as one: all that is computed up to a site comes from one of them, all after it from the other.

Where the two are not loaded at once, the states of tokens that follow the prompts, such as those of labels, are
recorded in one (:class:`LabelRecorder`) and handed to the other later (:class:`LabelReplay`), with the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from medmllm_plugins.models.cache_layers import PairedCache
from medmllm_plugins.models.generation import Prefill, cache_option
from medmllm_plugins.models.recorded_pass import CONNECTOR, RecordedPass, recording


class HybridModel:
    """A model that :mod:`medmllm_plugins.models.generation` can continue prompts with.

    Every token goes through the lower model up to the site, and from there on through the upper one.
    """

    def __init__(self, upper: RecordedPass, lower: RecordedPass, site: str) -> None:
        """``upper`` and ``lower`` are passes of two models over the same prompts."""
        self._upper, self._lower, self._site = upper, lower, site
        self.config = upper.model.config
        self.dtype = upper.model.dtype

    def prefill(self) -> Prefill:
        """Return the state after the prompts."""
        states = self._upper.moved(self._lower.states[self._site])
        connectors = self._upper.moved(self._lower.states[CONNECTOR])
        start = self._upper.resume(self._site, states, connectors, self._upper.beside(self._lower.states))
        return replace(start, cache=PairedCache(start.cache, self._lower.start.cache))

    @torch.no_grad()
    def forward(self, *, cache: PairedCache, **inputs: Any) -> Any:
        """Run further tokens through both models, as one model would be called."""
        device = self._lower.model.device
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with ExitStack() as stack:
            recorded = [stack.enter_context(recording(layer)) for layer in self._lower.layers_at(self._site)]
            beside = stack.enter_context(self._lower.recording_beside())
            self._lower.model(**moved, **cache_option(self._lower.model, cache.other))
        states = self._upper.moved(tuple(parts[0] for parts in recorded))
        # No image comes after the prompt, so no connector is called.
        passing = {name: tuple(record[0] for record in records) for name, records in beside.items()}
        with self._upper.holding(self._site, states, (), self._upper.beside(passing)):
            return self._upper.model(**inputs, **cache_option(self._upper.model, cache))

    __call__ = forward


class LabelRecorder:
    """A model that records the states of labels' tokens while they are scored.

    Attributes:
        states: states by site; empty where no label has more than one token.
    """

    def __init__(self, own: RecordedPass, sites: Collection[str]) -> None:
        """``own`` is a pass over the prompts, ``sites`` are layers of the LLM."""
        self._own, self._sites = own, sites
        self.config, self.dtype = own.model.config, own.model.dtype
        self.states: dict[str, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def forward(self, *, cache: DynamicCache, **inputs: Any) -> Any:
        """Run tokens of labels through the model, as it would be called."""
        with ExitStack() as stack:
            recorded = {
                site: [stack.enter_context(recording(layer)) for layer in self._own.layers_at(site)]
                for site in self._sites
            }
            beside = stack.enter_context(self._own.recording_beside())
            output = self._own.model(**inputs, **cache_option(self._own.model, cache))
        by_name = {**beside, **recorded}
        self.states = {site: tuple(parts[0] for parts in by_module) for site, by_module in by_name.items()}
        return output

    __call__ = forward


class LabelReplay:
    """The upper part of a model, with recorded states of prompts and of labels' tokens below it."""

    def __init__(self, upper: RecordedPass, site: str, of_labels: Mapping[str, tuple[Tensor, ...]]) -> None:
        """``of_labels`` are states of the labels' tokens, as a :class:`LabelRecorder` has them."""
        self._upper, self._site, self._of_labels = upper, site, of_labels
        self.config, self.dtype = upper.model.config, upper.model.dtype

    @torch.no_grad()
    def forward(self, *, cache: DynamicCache, **inputs: Any) -> Any:
        """Run the tokens of labels through the upper part, as the model would be called."""
        states, beside = self._upper.moved(self._of_labels[self._site]), self._upper.beside(self._of_labels)
        with self._upper.holding(self._site, states, (), beside):
            return self._upper.model(**inputs, **cache_option(self._upper.model, cache))

    __call__ = forward
