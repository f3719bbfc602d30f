"""Record the states of one clean pass, and resume passes from other states at one site.

Where a state is put in after a block of the LLM, nothing before that block is computed again: tower and connector and
the blocks below hand on what was recorded. The model's own code runs in between, so that masks, positions and image
features that are added to deeper layers (Qwen3-VL) are its own.

Blocks may read more than the output of the block before: keys and values of an earlier block, and the LLM's input (the
small Gemma 4). A site holds the states of tokens after one block. What passes beside it is recorded, too, and stays as
in the clean pass, unless everything below the site is taken from another model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.cache_layers import chosen_rows, has_keys, is_recurrent, is_sliding, own_copy
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.generation import Prefill, cache_option
from medmllm_plugins.models.stages import (
    EMBED,
    Layer,
    changed,
    connectors_of,
    is_block,
    layers_of,
    replaced_forward,
    tower_ends,
)

States: TypeAlias = Mapping[str, tuple[Tensor, ...]]
"""Tensors by site, one for each of its modules."""
TOWER_END: Final = "vision"
"""Name of the site at the end of the tower, whichever layer the connector reads."""
CONNECTOR: Final = "connector"
KEYS: Final = " keys"
"""Ends the name of keys and values that later blocks read beside the output of the block before."""
_TENSORS: Final = ("logits", "attention_mask", "next_position")
"""Fields of :class:`~medmllm_plugins.models.generation.Prefill` beside the cache."""
_CAUSAL: Final[WeakKeyDictionary[Any, bool]] = WeakKeyDictionary()
"""Whether the states of a model's prompts do not depend on later tokens."""


class RecordedPass:
    """The states of a batch of prompts with their images, recorded in one clean pass.

    Attributes:
        inputs: the model's input.
        start: the state after the prompts, as :func:`~medmllm_plugins.models.generation.prefill` returns it. Resumed
            passes take keys and values from its cache, so answer from a copy.
        states: states by site, one tensor for each module of the site in the model's own layout with the feature axis
            last: one for most sites; a connector may have several modules. Among them is what passes beside sites: keys
            and values of blocks that later ones read, (B, L, heads * d) each, and the LLM's input where they read it.
    """

    def __init__(self, loaded: LoadedModel, inputs: Mapping[str, Tensor], sites: Collection[str]) -> None:
        """Run the clean pass and record the states of some sites.

        Args:
            loaded: the model.
            inputs: what its ``prepare`` returned.
            sites: ``vision`` (all layers of the tower that connectors read), one layer of the tower such as
                ``vision.03``, ``connector``, ``llm.embed``, blocks such as ``llm.03``, and ``llm.norm``.

        Raises:
            OptionError: the model has no such site.
        """
        self.inputs = inputs
        self._loaded = loaded
        self._layers = {layer.name: layer for layer in layers_of(loaded)}
        self._connectors = connectors_of(loaded)
        self._tower_ends = tower_ends(loaded)
        tower = stage_module(loaded.model, loaded.family.tower)
        # Where the connector is a part of the tower, what the tower returns depends on it.
        apart = all(layer.module not in list(tower.modules()) for layer in self._connectors)
        self._tower = tower if apart else None
        self._tower_output: Any = None
        self._in_tuples: dict[nn.Module, bool] = {}
        self._keeps_shape: dict[nn.Module, bool] = {}
        blocks = [layer for layer in self._layers.values() if layer.part == "llm" and is_block(layer)]
        stores = loaded.family.key_stores(loaded.model).items()
        self._key_stores = {blocks[index].module: (blocks[index].name, kind) for index, kind in stores}
        with ExitStack() as stack:
            for module in self._blocks():
                stack.enter_context(self._noting(module))
            if self._tower is not None:
                handle = self._tower.register_forward_hook(self._keep_tower_output)
                stack.callback(handle.remove)
            # Connectors are recorded in any case: what is resumed deeper takes their outputs from here, and what is
            # resumed inside the tower those of the blocks before.
            before = [layer.name for site in sites for layer in self._vision_blocks_before(site)]
            recorded = {
                site: [stack.enter_context(recording(layer)) for layer in self.layers_at(site)]
                for site in dict.fromkeys([*before, *sites, CONNECTOR])
            }
            beside = stack.enter_context(self.recording_beside())
            with torch.no_grad():
                self.start = loaded.prefill(inputs)
        self.states: dict[str, tuple[Tensor, ...]] = {
            site: tuple(states[0] for states in by_module) for site, by_module in [*beside.items(), *recorded.items()]
        }

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._loaded.model

    def moved(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Move states of another model to the device and type of this one."""
        return tuple(state.to(device=self.model.device, dtype=self.model.dtype) for state in states)

    def layers_at(self, site: str) -> list[Layer]:
        """Return the layers that a site consists of.

        Raises:
            OptionError: the model has no such site.
        """
        if site == CONNECTOR:
            return self._connectors
        if site == TOWER_END:
            return self._tower_ends
        if site not in self._layers:
            raise OptionError(f"Expected a site among {[TOWER_END, *self._layers]}, got {site!r}.")
        return [self._layers[site]]

    def repeated(self, rows: int) -> RecordedPass:
        """Return the pass of as many copies of each prompt, one after the other; ``rows`` is their number.

        The pass must be that of one prompt.
        """
        copied = copy.copy(self)
        copied.inputs = {name: _repeated(value, rows) for name, value in self.inputs.items()}
        copied.states = {site: _repeated(states, rows) for site, states in self.states.items()}
        copied._tower_output = _repeated(self._tower_output, rows)
        cache = chosen_rows(self.start.cache, torch.zeros(rows, dtype=torch.long))
        start = {name: _repeated(getattr(self.start, name), rows) for name in _TENSORS}
        copied.start = Prefill(cache=cache, **start)
        return copied

    @contextmanager
    def recording_beside(self) -> Iterator[dict[str, list[list[Tensor]]]]:
        """Record what passes beside sites while the context is open: by name, for each tensor one of each pass."""
        with ExitStack() as stack:
            records = {
                f"{name}{KEYS}": stack.enter_context(_recording_keys(module, kind))
                for module, (name, kind) in self._key_stores.items()
            }
            if self._loaded.family.reads_embeddings(self.model):
                records[EMBED] = [stack.enter_context(recording(self._layers[EMBED]))]
            yield records

    def beside(self, states: Mapping[str, tuple[Tensor, ...]]) -> States:
        """Choose from another model's states those that pass beside sites, moved to the device and type of this one."""
        names = [f"{name}{KEYS}" for name, _ in self._key_stores.values()]
        names += [EMBED] if self._loaded.family.reads_embeddings(self.model) else []
        return {name: self.moved(states[name]) for name in names if name in states}

    @torch.no_grad()
    def resume(
        self,
        site: str,
        states: tuple[Tensor, ...],
        connectors: tuple[Tensor, ...] | None = None,
        beside: States | None = None,
    ) -> Prefill:
        """Return the state after the prompts where a site holds other states than it held.

        Args:
            site: a site.
            states: one tensor for each of its modules, of the shapes in :attr:`states`.
            connectors: outputs of the connectors, where a model adds some of them behind the site (Qwen3-VL); those of
                the clean pass by default.
            beside: what :meth:`beside` returned, where everything below the site is another model's.

        Raises:
            OptionError: the shapes differ.
        """
        shapes = [tuple(state.shape) for state in states]
        if site in self.states and shapes != (own := [tuple(state.shape) for state in self.states[site]]):
            raise OptionError(
                f"{site}: expected states of the shapes {own}, got {shapes}. Both models need the same prompt and as "
                "many image tokens: give them images of one size."
            )
        return self.resume_with_gradient(site, states, connectors, beside)

    def resume_with_gradient(
        self,
        site: str,
        states: tuple[Tensor, ...],
        connectors: tuple[Tensor, ...] | None = None,
        beside: States | None = None,
    ) -> Prefill:
        """Return what :meth:`resume` does, differentiable in the states; shapes are not compared."""
        with self.holding(site, states, connectors or self.states[CONNECTOR], beside):
            start = self._loaded.prefill(self.inputs)
        # The keys and values of the blocks that were not computed are those of the clean pass, or were put in.
        for index, module in enumerate(self._skipped_llm_blocks(site)):
            # Older versions of transformers keep nothing for blocks that read the keys of others.
            if module not in self._key_stores and index < len(start.cache.layers):
                start.cache.layers[index] = own_copy(self.start.cache.layers[index])
        return start

    @torch.no_grad()
    def resume_last(self, site: str, states: tuple[Tensor, ...]) -> Prefill:
        """Return the state after the prompts where their last token alone holds another state.

        No other token of a prompt sees the last one, so that it alone is computed again, from the keys and values of
        the clean pass: a hundredth of the work. Where prompts are not causal (PaliGemma), keys and values slide out of
        a window, blocks keep a state in their place (Qwen3.5) or read keys of earlier blocks, the whole prompt is.

        Args:
            site: the input of the LLM or one of its blocks.
            states: the state of all tokens, (B, L, d), of which the last counts.
        """
        if not self._sees_no_later_token():
            return self.resume(site, states)
        cache = copy.copy(self.start.cache)
        cache.layers = [_without_last(layer) for layer in self.start.cache.layers]
        last = tuple(state[:, -1:] for state in states)
        with self.holding(site, last, ()):
            output = self.model(
                input_ids=self.inputs["input_ids"][:, -1:],
                attention_mask=self.start.attention_mask,
                position_ids=self.start.next_position[:, None] - 1,
                **cache_option(self.model, cache),
                use_cache=True,
            )
        count = len(self._skipped_llm_blocks(site))
        cache.layers[:count] = [copy.copy(layer) for layer in self.start.cache.layers[:count]]
        return replace(self.start, logits=output.logits[:, -1].float(), cache=cache)

    def _sees_no_later_token(self) -> bool:
        """Return whether the states of prompts do not depend on later tokens, measured once for each model."""
        layers: Any = self.start.cache.layers
        if self._key_stores or any(is_recurrent(layer) or is_sliding(layer) for layer in layers):
            return False
        if self.model not in _CAUSAL:
            ids = self.inputs["input_ids"].clone()
            ids[:, -1] = ids[:, -2]
            other: Any = self._loaded.prefill({**self.inputs, "input_ids": ids}).cache.layers[-1]
            same = torch.allclose(other.keys[..., :-1, :], layers[-1].keys[..., :-1, :], rtol=1e-3, atol=1e-3)
            _CAUSAL[self.model] = same
        return _CAUSAL[self.model]

    @torch.no_grad()
    def connected(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the connectors make of other states at the end of the tower.

        Raises:
            OptionError: the shapes differ.
        """
        with ExitStack() as stack:
            recorded = [stack.enter_context(recording(layer)) for layer in self._connectors]
            self.resume(TOWER_END, states)
        return tuple(parts[0] for parts in recorded)

    @contextmanager
    def holding(
        self,
        site: str,
        states: tuple[Tensor, ...],
        connectors: tuple[Tensor, ...],
        beside: States | None = None,
    ) -> Iterator[None]:
        """Let a site hold states while the context is open, and compute nothing before it.

        Connectors hand on ``connectors``, unless the site comes before them; none are needed where no image is read.
        What passes beside the site is that of the clean pass, or ``beside`` of other tokens or another model.

        In a pass that extends a cache, blocks that are not computed extend it too, by keys and values that nothing
        reads, so that all blocks agree on the length of the sequence.
        """
        skipped = self._skipped_llm_blocks(site)
        with ExitStack() as stack:
            if beside and EMBED in beside:
                llm = stage_module(self.model, self._loaded.family.llm_blocks.rpartition(".")[0])
                stack.enter_context(_reading(llm, beside[EMBED][0]))
            passing = self.states if beside is None else beside
            for layer, state in zip(self.layers_at(site), states, strict=True):
                if site == CONNECTOR:
                    stack.enter_context(replaced_forward(layer.module, _constant(layer.from_rows(state))))
                elif layer.module in skipped:
                    stack.enter_context(self._returning(layer.module, state, skipped.index(layer.module), passing))
                else:
                    stack.enter_context(changed(layer, _constant(state)))
            for index, module in enumerate(skipped):
                if module not in [layer.module for layer in self.layers_at(site)]:
                    stack.enter_context(self._returning(module, None, index, passing))
            inside = site in self._layers and self._layers[site].part == "vision"
            for layer in self._vision_blocks_before(site):
                state = layer.from_rows(self.states[layer.name][0])
                stack.enter_context(self._returning(layer.module, state, None))
            if inside or site == TOWER_END:
                yield
                return
            tower = self._vision_blocks()
            if self._tower_output is not None and self._tower is not None:
                stack.enter_context(replaced_forward(self._tower, _constant(self._tower_output)))
                tower = []
            # Blocks that change the shape, as those of a convolutional tower, are computed though nothing reads them.
            if all(self._keeps_shape.get(layer.module, True) for layer in tower):
                for layer in tower:
                    stack.enter_context(self._returning(layer.module, None, None))
            if site != CONNECTOR:
                for layer, state in zip(self._connectors, connectors, strict=False):
                    stack.enter_context(replaced_forward(layer.module, _constant(layer.from_rows(state))))
            yield

    def _vision_blocks(self) -> list[Layer]:
        return [layer for layer in self._layers.values() if layer.part == "vision" and is_block(layer)]

    def _vision_blocks_before(self, site: str) -> list[Layer]:
        """Return the blocks of the tower before a layer of the tower; none for other sites."""
        if site not in self._layers or self._layers[site].part != "vision":
            return []
        names = list(self._layers)
        return [layer for layer in self._vision_blocks() if names.index(layer.name) < names.index(site)]

    def _skipped_llm_blocks(self, site: str) -> list[nn.Module]:
        """Return the blocks of the LLM whose output nothing reads where a site is given, its own among them."""
        blocks = [name for name, layer in self._layers.items() if layer.part == "llm" and is_block(layer)]
        if site in (TOWER_END, CONNECTOR, EMBED) or self._layers[site].part == "vision":
            return []
        names = blocks[: blocks.index(site) + 1] if site in blocks else blocks
        return [self._layers[name].module for name in names]

    def _keep_tower_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._tower_output = output

    def _blocks(self) -> list[nn.Module]:
        return [layer.module for layer in self._layers.values() if is_block(layer)]

    @contextmanager
    def _noting(self, module: nn.Module) -> Iterator[None]:
        """Note whether a block returns a tuple, and whether what it returns has the shape of what it is given."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = args[0] if args else kwargs.get("hidden_states")
            leaving = output[0] if isinstance(output, tuple) else output
            self._in_tuples[module] = isinstance(output, tuple)
            self._keeps_shape[module] = isinstance(entering, Tensor) and entering.shape == leaving.shape

        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _returning(
        self, module: nn.Module, state: Tensor | None, index: int | None, passing: States | None = None
    ) -> Iterator[None]:
        """Let a block return a state, or what it is given, and compute nothing.

        ``index`` is its place in the cache; ``passing`` holds the keys and values that later blocks read of it.
        """
        in_tuple = self._in_tuples[module]
        store = self._key_stores.get(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            entering = args[0] if args else kwargs["hidden_states"]
            cache = next((kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None), None)
            if store is not None and index is not None and passing is not None:
                name, kind = store
                own: Any = self.start.cache.layers[index]
                keys, values = (
                    part.reshape(*part.shape[:2], own.keys.shape[1], -1).transpose(1, 2)
                    for part in passing[f"{name}{KEYS}"]
                )
                handed_on = (keys, values) if cache is None else cache.update(keys, values, index)
                kwargs["shared_kv_states"][kind] = handed_on
            elif index is not None and cache is not None:
                _extend(cache, index, entering.shape[1])
            output = entering if state is None else state
            return (output,) if in_tuple else output

        with replaced_forward(module, forward):
            yield


def _repeated(value: Any, rows: int) -> Any:
    """Repeat the tensors of a value, such as a module's output, along their first axis."""
    if isinstance(value, Tensor):
        return value.repeat(rows, *[1] * (value.dim() - 1)) if value.dim() else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _repeated(part, rows) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_repeated(part, rows) for part in value)
    return value


def _without_last(layer: Any) -> Any:
    """Return a copy of a layer of a cache without its last position."""
    shorter = copy.copy(layer)
    shorter.keys, shorter.values = (part[..., :-1, :] for part in (layer.keys, layer.values))
    return shorter


def _extend(cache: DynamicCache, index: int, count: int) -> None:
    """Extend a layer of a cache by ``count`` positions, if it holds any; their keys and values are never read."""
    if index >= len(cache.layers):  # of a block that reads the keys of others, in older versions of transformers
        return
    layer: Any = cache.layers[index]
    if has_keys(layer) and layer.get_seq_length():
        layer.update(*(part[..., -1:, :].expand(-1, -1, count, -1) for part in (layer.keys, layer.values)))


@contextmanager
def _recording_keys(module: nn.Module, kind: str) -> Iterator[list[list[Tensor]]]:
    """Record keys and values that a block hands on while the context is open, those of the tokens that it is given."""
    usual = module.forward
    records: list[list[Tensor]] = [[], []]

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = usual(*args, **kwargs)
        count = (args[0] if args else kwargs["hidden_states"]).shape[1]
        for record, part in zip(records, kwargs["shared_kv_states"][kind], strict=True):
            record.append(part[..., -count:, :].transpose(1, 2).flatten(2).detach())
        return output

    with replaced_forward(module, forward):
        yield records


@contextmanager
def _reading(llm: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Let the LLM read other embeddings than it is given."""
    usual = llm.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return usual(*args, **{**kwargs, "inputs_embeds": embeddings})

    with replaced_forward(llm, forward):
        yield


@contextmanager
def recording(layer: Layer) -> Iterator[list[Tensor]]:
    """Record what a layer holds while the context is open."""
    states: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        states.append(output.detach())
        return output

    with changed(layer, keep):
        yield states


def _constant(output: Any) -> Any:
    return lambda *_args, **_kwargs: output
