"""Edit the weights or module outputs of a model inside a context, and undo the edit when the context ends.

Edits depend only on a seed and the content of the image, not on the order or batches of documents. Hooks inside the
model therefore need to know which rows of a stage, and which positions of a cached prompt, belong to which document:
:func:`track_batch` provides this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.cache_layers import is_sliding
from medmllm_plugins.models.families.family import ImageStage, replace_rows, select_rows
from medmllm_plugins.models.stages import replaced_forward

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""Maps a module's output to its replacement."""
Hide: TypeAlias = Callable[[int, int], Tensor | None]
"""Takes the number of the first key and how many keys there are, and returns which keys to hide from each new token of
each document, (B or 1, new, keys) bool; ``None`` to hide nothing."""
Change: TypeAlias = Callable[[str, Tensor], None]
"""Changes a named matrix in place."""
_STAGES: Final[tuple[ImageStage, ...]] = ("vision", "connector")
LogitEdits: TypeAlias = Mapping[tuple[int, ...], tuple[list[int], list[int], float]]
"""Maps the tokens of an answer so far to (target token ids, source token ids, added log-odds in nats)."""


# Weights.


@contextmanager
def change_weights(module: nn.Module, change: Change) -> Iterator[None]:
    """Change a module's matrices in place, and restore them bit for bit."""
    matrices = [(name, value) for name, value in module.named_parameters() if value.dim() > 1]
    packed = [name for name, value in matrices if not value.is_floating_point()]
    if packed:
        raise ModelError(
            f"Expected weights in floating point, got {packed[0]} quantised. Load the model without load_in."
        )
    originals = [value.detach().clone() for _, value in matrices]
    try:
        with torch.no_grad():
            for name, value in matrices:
                change(name, value)
        yield
    finally:
        with torch.no_grad():
            for (_, value), original in zip(matrices, originals, strict=True):
                value.copy_(original)


def add_noise(seed: int, block: int, grade: float) -> Change:
    """Add Gaussian noise, in multiples of each matrix's standard deviation."""

    def change(name: str, value: Tensor) -> None:
        noise = torch.randn(value.shape, generator=seeded_generator(seed, "noise", block, name))
        value.add_((noise.to(value.device) * value.float().std() * grade).to(value.dtype))

    return change


def reset_weights(seed: int, block: int, grade: float, spread: float) -> Change:
    """Replace a fraction of the weights by random values, normal with standard deviation ``spread``."""

    def change(name: str, value: Tensor) -> None:
        generator = seeded_generator(seed, "reset", block, name)
        fresh = torch.randn(value.shape, generator=generator) * spread
        # The same order at every strength, so that a stronger fault includes the weaker one.
        chosen = torch.rand(value.shape, generator=generator) < grade
        value.copy_(torch.where(chosen.to(value.device), fresh.to(value), value))

    return change


# Outputs of modules.


@contextmanager
def edit_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Replace a module's output; hooks see the new one, and contexts that are opened later replace it in turn."""
    usual = module.forward

    def edited(*args: Any, **kwargs: Any) -> Tensor:
        output = usual(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise ModelError(
                f"Expected {type(module).__name__} to return a tensor, got {type(output).__name__}. This version of "
                "transformers has another layout."
            )
        return edit(output)

    with replaced_forward(module, edited):
        yield


class _TokenLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """An extra layer of the KV cache that stores token ids as keys and image digests as values.

    Rows of a cache are dropped, repeated and copied between the steps of an answer. This layer goes through the same
    changes, so later steps know which cached positions are image tokens, and of which document.
    """

    prompt: int = 0


@contextmanager
def track_batch(loaded: LoadedModel) -> Iterator[BatchTracker]:
    """Track the calls of a model while the context is open."""
    batch = BatchTracker(loaded)
    before = loaded.model.register_forward_pre_hook(batch.begin, with_kwargs=True)
    try:
        after = loaded.model.register_forward_hook(batch.end, with_kwargs=True)
        try:
            yield batch
        finally:
            after.remove()
    finally:
        before.remove()


class BatchTracker:
    """The tokens and images of the current call of the model, for hooks inside it.

    Attributes:
        ids: all tokens so far, cached ones included, (B, T), int64.
        image: which of them are image tokens, (B, T), bool.
        digests: one number for each document, a hash of its image.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._mask: Tensor | None = None
        self._new_ids = torch.empty(0, 0, dtype=torch.long)
        self.ids = self._new_ids
        self.image = self._new_ids.bool()
        self.new = self.prompt = 0
        self.digests: list[int] = []
        self._rows: dict[ImageStage, list[int]] = {}
        self._row_masks: dict[ImageStage, Tensor | None] = {}
        self._shared_sizes: dict[int, tuple[int, int]] = {}

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the tokens and images of a call, as a forward pre-hook of the whole model."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise ModelError("Expected a call with `input_ids`, which mark the image tokens, got none.")
        cache = _cache(kwargs)
        tokens = _token_layer(cache)
        if tokens is not None and tokens.keys is not None and tokens.values is not None:
            self.ids, self.prompt = torch.cat([tokens.keys[:, 0, :, 0], ids], dim=1), tokens.prompt
            self.digests = tokens.values[:, 0, 0, 0].tolist()
        elif cache is not None and cache.get_seq_length():
            raise ModelError("Expected the prompt to pass through the edited model, got a cache from before the edit.")
        else:
            self.ids, self.prompt = ids, ids.shape[1]
            self._read_images(ids, kwargs)
        self._new_ids, self.new = ids, ids.shape[1]
        stores = self._loaded.family.key_stores(self._loaded.model)
        self._shared_sizes = {} if cache is None else {index: cache.get_mask_sizes(self.new, index) for index in stores}
        self.image = self._loaded.image_positions({"input_ids": self.ids})
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 4 else None

    def _read_images(self, ids: Tensor, kwargs: dict[str, Any]) -> None:
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            self.digests, self._rows, self._row_masks = [0] * len(ids), {}, {}
            return
        inputs, family, model = {**kwargs, "input_ids": ids}, self._loaded.family, self._loaded.model
        for stage in _STAGES:
            self._rows[stage] = self._loaded.rows_per_document(stage, inputs)
            self._row_masks[stage] = family.row_mask(model, stage, inputs)
        # Pixels are bit-identical in every batch; later values are not.
        parts = family.pixels_by_document(model, inputs)
        self.digests = [_number(part.detach().float().cpu().contiguous().numpy().tobytes()) for part in parts]

    def end(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Store the tokens in the cache, as a forward hook of the whole model."""
        # Asking a newer transformers for the old name makes it warn.
        cache = getattr(output, "cache", None)
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is None:
            return
        tokens = _token_layer(cache)
        if tokens is None:
            tokens = _TokenLayer()  # type: ignore[no-untyped-call]
            tokens.prompt = self.prompt
            # Masks are made for the first layer of each kind, so this one must not be the first of its kind.
            tokens.is_sliding = is_sliding(cache.layers[0])
            if tokens.is_sliding:
                tokens.sliding_window = cache.layers[0].sliding_window  # type: ignore[attr-defined]
            cache.layers.append(tokens)
        rows = self._new_ids[:, None, :, None]
        digests = torch.tensor(self.digests, device=rows.device)[:, None, None, None].expand_as(rows)
        tokens.update(rows, digests)

    def _chosen(self, seed: int, share: float) -> list[bool]:
        # The same order at every strength, so that a stronger fault includes the weaker one.
        return [
            float(torch.rand(1, generator=seeded_generator(seed, "lost", digest))) < share for digest in self.digests
        ]

    def lost(self, stage: ImageStage, seed: int, share: float) -> Edit:
        """Replace the rows of a fraction of the documents by zeros."""

        def edit(output: Tensor) -> Tensor:
            chosen = self._chosen(seed, share)
            return self._edited(output, stage, lambda index, part: torch.zeros_like(part) if chosen[index] else part)

        return edit

    def without(self, basis: Tensor, seed: int, share: float) -> Edit:
        """Remove the directions of a basis, (k, d), from every token of a fraction of the documents."""

        def edit(output: Tensor) -> Tensor:
            if output.shape[-1] != basis.shape[1]:
                raise ModelError(
                    f"Expected directions as wide as the connector's output, {output.shape[-1]}, got "
                    f"{basis.shape[1]}. Take them from this model's features."
                )
            chosen, removed = self._chosen(seed, share), basis.to(output.device, torch.float32)

            def remove(index: int, part: Tensor) -> Tensor:
                rows = part.float()
                return (rows - rows @ removed.T @ removed).to(part.dtype) if chosen[index] else part

            return self._edited(output, "connector", remove)

        return edit

    def blurred(self, stage: ImageStage, seed: int, number: int, grade: float) -> Edit:
        """Add a random vector for each document to all its rows."""

        def blur(index: int, part: Tensor) -> Tensor:
            spread = part.float().reshape(-1, part.shape[-1]).std(0, correction=0)
            noise = torch.randn(len(spread), generator=seeded_generator(seed, "blur", number, self.digests[index]))
            return part + (noise.to(part.device) * spread * grade).to(part.dtype)

        return lambda output: self._edited(output, stage, blur)

    def _edited(self, output: Tensor, stage: ImageStage, edit: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Edit the rows of each document apart; ``edit`` takes its number. Padding stays as it is."""
        rows, mask = self._rows.get(stage, []), self._row_masks.get(stage)
        own = select_rows(output, mask)
        if sum(rows) != len(own):
            raise ModelError(
                f"Expected {sum(rows)} rows from the stage, by the batch's input, got {len(own)}. This version of "
                "transformers has another layout."
            )
        parts = [edit(index, part) for index, part in enumerate(torch.split(own, rows))]
        return replace_rows(output, mask, torch.cat(parts))

    def text_blurred(self, seed: int, number: int, grade: float) -> Edit:
        """Add a random vector for each document to the part of its prompt after the last image token."""

        def edit(output: Tensor) -> Tensor:
            width = output.shape[-1]
            if self.new != self.prompt:
                return output
            generators = [seeded_generator(seed, "text", number, digest) for digest in self.digests]
            noise = torch.stack([torch.randn(width, generator=generator) for generator in generators])
            # Text before the image is left unchanged, because the image tokens attend to it.
            behind = self.image.flip(1).cumsum(1).flip(1)[:, -self.new :, None] == 0
            size = output.float().pow(2).mean(-1, keepdim=True).sqrt()
            blurred = output + (noise.to(output.device)[:, None] * size * grade).to(output.dtype)
            return torch.where(behind, blurred, output)

        return edit

    def by_document(self, stage: ImageStage, edit: Edit, *, flat: bool, skipped: int = 0) -> Edit:
        """Edit the rows of each document apart, as (…, rows, d).

        ``flat`` tells that a stage returns the rows of all documents in one list, and not by tile; the first
        ``skipped`` rows of a tile, its class tokens, stay as they are.
        """

        def edit_tiles(output: Tensor) -> Tensor:
            patches = output.flatten(1, -2)
            edited = torch.cat([patches[:, :skipped], edit(patches[:, skipped:])], dim=1)
            return edited.reshape(output.shape)

        def edit_list(output: Tensor) -> Tensor:
            return self._edited(output, stage, lambda _, part: edit(part))

        return edit_list if flat else edit_tiles

    def text_to_images(self, seed: int, share: float) -> Hide:
        """Hide the image tokens of a fraction of the documents from all other tokens."""

        def hide(offset: int, length: int) -> Tensor | None:
            chosen = self._chosen(seed, share)
            if not any(chosen):
                return None
            seen = self.image[:, None, offset : offset + length]
            return ~self.image[:, -self.new :, None] & seen & torch.tensor(chosen, device=seen.device)[:, None, None]

        return hide

    def images_from(self, queries: str) -> Hide:
        """Hide the image tokens from the text before the prompt's last token (``question``), or from what follows.

        ``answer`` is the last token of the prompt and all after it; ``text`` is both.
        """

        def hide(offset: int, length: int) -> Tensor:
            numbers, _ = self._positions(offset, length)
            asking = ~self.image[:, -self.new :, None]
            if queries != "text":
                asking = asking & ((numbers >= self.prompt - 1) == (queries == "answer"))[None]
            return asking & self.image[:, None, offset : offset + length]

        return hide

    def some_images(self, seed: int, share: float) -> Hide:
        """Hide a random fraction of the image tokens from all other tokens, the same of every document."""

        def hide(offset: int, length: int) -> Tensor:
            rank = self.image.cumsum(1)
            draws = torch.rand(int(rank.max()) + 1, generator=seeded_generator(seed, "hidden tokens"))
            dropped = self.image & (draws.to(rank.device)[rank] < share)
            queries, keys = self._positions(offset, length)
            return dropped[:, None, offset : offset + length] & (queries != keys)

        return hide

    def outside_window(self, width: int) -> Hide:
        """Hide all tokens but the last ``width`` from each token."""

        def hide(offset: int, length: int) -> Tensor:
            queries, keys = self._positions(offset, length)
            return (queries - keys >= width)[None]

        return hide

    def _positions(self, offset: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the new tokens, (new, 1), and of the keys, (length,), in the sequence."""
        numbers = torch.arange(self.ids.shape[1], device=self.ids.device)
        return numbers[-self.new :, None], torch.arange(offset, offset + length, device=self.ids.device)

    @contextmanager
    def masked(self, layer: nn.Module, number: int, hide: Hide) -> Iterator[None]:
        """Mask keys from queries in a layer of the LLM."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            cache = _cache(kwargs)
            # A layer with a window keeps the last keys only.
            index = self._loaded.family.cache_layer(self._loaded.model, number)
            if cache is None:
                length, offset = self.new, 0
            elif index == number:
                length, offset = cache.get_mask_sizes(self.new, number)
            else:  # keys of an earlier block, which has extended them by now
                length, offset = self._shared_sizes[index]
            hid = hide(offset, length)
            if hid is None:
                return None
            mask = kwargs.get("attention_mask")
            if mask is None:  # left out by transformers where it would be a plain triangle
                queries, keys = self._positions(offset, length)
                mask = hidden.new_zeros(1, 1, self.new, length)
                mask = mask.masked_fill(keys > queries, torch.finfo(hidden.dtype).min)
            if mask.dim() != 4 or mask.shape[-2:] != hid.shape[-2:]:
                raise ModelError(
                    f"Expected an attention mask that ends in {tuple(hid.shape[-2:])}, got {tuple(mask.shape)}. This "
                    "version of transformers has another layout."
                )
            hid = hid[:, None].to(mask.device)
            mask = mask & ~hid if mask.dtype == torch.bool else mask.masked_fill(hid, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def shifted_images(self, rotary: nn.Module, steps: float) -> Iterator[None]:
        """Add a number to the positions of image tokens, where a module computes their rotary embeddings."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            positions: Tensor = args[1] if len(args) > 1 else kwargs["position_ids"]
            shifted = positions + int(steps) * self.image[:, -self.new :].to(positions)
            if len(args) > 1:
                return (args[0], shifted, *args[2:]), kwargs
            return args, {**kwargs, "position_ids": shifted}

        handle = rotary.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def answered(self, edits: LogitEdits) -> Edit:
        """Change the logits of an answer's tokens, depending on its tokens so far."""

        def edit(output: Tensor) -> Tensor:
            logits, total = output.clone(), self.ids.shape[1]
            for row, ids in enumerate(self.ids.tolist()):
                # Logits may exist for the last positions only; those within the prompt are not the answer's.
                for position in range(max(0, self.prompt - 1 - total + output.shape[1]), output.shape[1]):
                    answer = self._answer_so_far(row, ids, position - output.shape[1])
                    if answer in edits:
                        targets, sources, added = edits[answer]
                        logits[row, position, targets] = output[row, position, sources] + added
            return logits

        return edit

    def _answer_so_far(self, row: int, ids: list[int], position: int) -> tuple[int, ...]:
        """Return the answer's tokens up to a position, which is counted from the end."""
        if self._mask is None:
            return tuple(ids[self.prompt : len(ids) + position + 1])
        # Several labels in one sequence, each of which attends to its own tokens only.
        line = self._mask[row if len(self._mask) > 1 else 0, 0, position]
        sees = (line if line.dtype == torch.bool else line == 0)[self.prompt :].tolist()
        return tuple(token for token, seen in zip(ids[self.prompt :], sees, strict=True) if seen)


def _cache(kwargs: Mapping[str, Any]) -> Any:
    """Return a call's cache, by its new name or its old one."""
    return next((kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None), None)


def _token_layer(cache: Any) -> _TokenLayer | None:
    return next((layer for layer in getattr(cache, "layers", ()) if isinstance(layer, _TokenLayer)), None)


def _number(content: bytes) -> int:
    """Return 63 bits of the content's SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1


def seeded_generator(*key: object) -> torch.Generator:
    """Return a generator on the CPU whose seed is a hash of the key."""
    return torch.Generator().manual_seed(_number(repr(key).encode()))


def check_masks(loaded: LoadedModel) -> None:
    """Check that the attention takes a mask for each pair of tokens.

    Raises:
        ModelError: it does not.
    """
    text: Any = loaded.model.config.get_text_config()
    kind = text._attn_implementation
    if kind not in ("eager", "sdpa"):
        raise ModelError(
            f"Expected a model with attention 'sdpa' or 'eager', which take a mask for each pair of tokens, got "
            f"{kind!r}. Load it with attn_implementation=sdpa."
        )
    if "linear_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError(
            f"{loaded.family.title}: expected attention between pairs of tokens in all blocks of the LLM, got blocks "
            "of linear attention, in which no pair can be cut."
        )
