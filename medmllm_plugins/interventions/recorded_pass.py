"""Record the states of one clean pass, and resume passes from other states at one site.

Where a state is put in after a block of the LLM, nothing before that block is computed again: tower and connector and
the blocks below hand on what was recorded. The model's own code runs in between, so that masks, positions and image
features that are added to deeper layers (Qwen3-VL) are its own.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.generation import Prefill
from medmllm_plugins.models.stages import (
    EMBED,
    Layer,
    changed,
    connectors_of,
    is_block,
    layers_of,
    replaced_forward,
    tower_end,
)

TOWER_END: Final = "vision"
"""Name of the site at the end of the tower, whichever layer the connector reads."""
CONNECTOR: Final = "connector"


class RecordedPass:
    """The states of a batch of prompts with their images, recorded in one clean pass.

    Attributes:
        inputs: the model's input.
        start: the state after the prompts, as :func:`~medmllm_plugins.models.generation.prefill` returns it.
        states: states by site, one tensor for each module of the site in the model's own layout with the feature axis
            last: one for most sites; a connector may have several modules.
    """

    def __init__(self, loaded: LoadedModel, inputs: Mapping[str, Tensor], sites: Collection[str]) -> None:
        """Run the clean pass and record the states of some sites.

        Args:
            loaded: the model.
            inputs: what its ``prepare`` returned.
            sites: ``vision`` (the end of the tower), ``connector``, ``llm.embed``, blocks such as ``llm.03``, and
                ``llm.norm``.

        Raises:
            OptionError: the model has no such site.
        """
        self.inputs = inputs
        self._loaded = loaded
        self._layers = {layer.name: layer for layer in layers_of(loaded)}
        self._connectors = connectors_of(loaded)
        self._tower = tower_end(loaded)
        self._in_tuples: dict[nn.Module, bool] = {}
        # Connectors are recorded in any case: what is resumed deeper takes their outputs from here.
        self.states: dict[str, tuple[Tensor, ...]] = {}
        with ExitStack() as stack:
            for module in self._blocks():
                stack.enter_context(self._noting(module))
            recorded = {
                site: [stack.enter_context(_recording(layer)) for layer in self.layers_at(site)]
                for site in dict.fromkeys([*sites, CONNECTOR])
            }
            with torch.no_grad():
                self.start = loaded.prefill(inputs)
        self.states = {site: tuple(states[0] for states in by_module) for site, by_module in recorded.items()}

    def layers_at(self, site: str) -> list[Layer]:
        """Return the layers that a site consists of.

        Raises:
            OptionError: the model has no such site.
        """
        if site == CONNECTOR:
            return self._connectors
        if site == TOWER_END:
            return [self._tower]
        layer = self._layers.get(site)
        if layer is None or layer.part != "llm":
            llm = [name for name, known in self._layers.items() if known.part == "llm"]
            raise OptionError(f"Expected a site among {[TOWER_END, CONNECTOR, *llm]}, got {site!r}.")
        return [layer]

    @torch.no_grad()
    def resume(self, site: str, states: tuple[Tensor, ...]) -> Prefill:
        """Return the state after the prompts where a site holds other states than it held.

        Args:
            site: a site.
            states: one tensor for each of its modules, of the shapes in :attr:`states`.

        Raises:
            OptionError: the shapes differ.
        """
        layers = self.layers_at(site)
        shapes = [tuple(state.shape) for state in states]
        if site in self.states and shapes != (own := [tuple(state.shape) for state in self.states[site]]):
            raise OptionError(
                f"{site}: expected states of the shapes {own}, got {shapes}. Both models need the same prompt and as "
                "many image tokens: give them images of one size."
            )
        with ExitStack() as stack:
            for layer, state in zip(layers, states, strict=True):
                if site not in (EMBED, TOWER_END, CONNECTOR) and is_block(layer):
                    stack.enter_context(self._returning(layer.module, state))
                else:
                    stack.enter_context(changed(layer, _constant(state)))
            skipped = self._before(site)
            for module in skipped:
                stack.enter_context(self._returning(module, None))
            if site not in (TOWER_END, CONNECTOR):
                for layer, state in zip(self._connectors, self.states[CONNECTOR], strict=True):
                    stack.enter_context(replaced_forward(layer.module, _constant(layer.from_rows(state))))
            start = self._loaded.prefill(self.inputs)
        self._complete(start.cache, site)
        return start

    def _blocks(self) -> list[nn.Module]:
        return [layer.module for layer in self._layers.values() if is_block(layer)]

    def _before(self, site: str) -> list[nn.Module]:
        """Return the blocks whose outputs nothing reads where a site is given: those of the tower, and of the LLM."""
        names = list(self._layers)
        end = names.index(self._tower.name if site == TOWER_END else site)
        if site == TOWER_END:
            return []
        blocks = [name for name in names[:end] if is_block(self._layers[name])]
        return [self._layers[name].module for name in blocks]

    def _complete(self, cache: DynamicCache, site: str) -> None:
        """Give a cache the clean pass's keys and values of the blocks that were not computed."""
        blocks = [name for name, layer in self._layers.items() if layer.part == "llm" and is_block(layer)]
        if site in (TOWER_END, CONNECTOR, EMBED):
            return
        count = len(blocks) if site not in blocks else blocks.index(site) + 1
        cache.layers[:count] = [copy.copy(layer) for layer in self.start.cache.layers[:count]]

    @contextmanager
    def _noting(self, module: nn.Module) -> Iterator[None]:
        """Note whether a block returns a tuple."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._in_tuples[module] = isinstance(output, tuple)

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _returning(self, module: nn.Module, state: Tensor | None) -> Iterator[None]:
        """Let a block return a state, or what it is given, and compute nothing."""
        in_tuple = self._in_tuples[module]

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = state if state is not None else (args[0] if args else kwargs["hidden_states"])
            return (output,) if in_tuple else output

        with replaced_forward(module, forward):
            yield


@contextmanager
def _recording(layer: Layer) -> Iterator[list[Tensor]]:
    """Record what a layer holds while the context is open."""
    states: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        states.append(output.detach())
        return output

    with changed(layer, keep):
        yield states


def _constant(output: Any) -> Any:
    return lambda *_args, **_kwargs: output
