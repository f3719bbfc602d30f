"""Interventions on a model, each undone when its context ends: weights changed, outputs of modules replaced.

Edits follow from a seed and the image's content, whatever the order of documents and the batch they come in. For that,
hooks further in have to know which rows of a stage, and which positions of a cached prompt, are of which document's
image: :func:`track_batch` tells them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""A module's output to what stands in its place."""
Change: TypeAlias = Callable[[str, Tensor], None]
"""Changes a matrix, given with its name, in place."""
LogitEdits: TypeAlias = Mapping[tuple[int, ...], tuple[list[int], list[int], float]]
"""By what has been said of an answer: the tokens whose logits change, those they are taken from, and nats added."""


# Weights.


@contextmanager
def change_weights(module: nn.Module, change: Change) -> Iterator[None]:
    """Change a module's matrices in place, and put them back bit for bit."""
    matrices = [(name, value) for name, value in module.named_parameters() if value.dim() > 1]
    packed = [name for name, value in matrices if not value.is_floating_point()]
    if packed:
        raise ModelError(f"Expected weights in floating point, found {packed[0]} quantised; load without load_in.")
    kept = [value.detach().clone() for _, value in matrices]
    try:
        with torch.no_grad():
            for name, value in matrices:
                change(name, value)
        yield
    finally:
        with torch.no_grad():
            for (_, value), before in zip(matrices, kept, strict=True):
                value.copy_(before)


def add_noise(seed: int, block: int, grade: float) -> Change:
    """Gaussian noise added, as a multiple of the matrix's own spread."""

    def change(name: str, value: Tensor) -> None:
        noise = torch.randn(value.shape, generator=seeded_generator(seed, "noise", block, name))
        value.add_((noise.to(value.device) * value.float().std() * grade).to(value.dtype))

    return change


def reset_weights(seed: int, block: int, grade: float, spread: float) -> Change:
    """A share of the weights drawn anew, normal with this spread."""

    def change(name: str, value: Tensor) -> None:
        generator = seeded_generator(seed, "reset", block, name)
        fresh = torch.randn(value.shape, generator=generator) * spread
        # The same order at every strength, so that a stronger fault holds the weaker one.
        chosen = torch.rand(value.shape, generator=generator) < grade
        value.copy_(torch.where(chosen.to(value.device), fresh.to(value), value))

    return change


# Outputs of modules.


@contextmanager
def edit_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Put another tensor in the place of a module's output; hooks of others see the new one."""

    def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"Expected {type(module).__name__} to return a tensor, found {type(output).__name__}; this version of "
                "transformers lays it out differently."
            )
        return edit(output)

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


class _Told(DynamicLayer):  # type: ignore[no-untyped-call]
    """One more layer of a KV cache, which holds tokens where the others hold keys, and image digests for values.

    Rows of a cache are dropped, repeated and copied between the steps of an answer, and what stands in a layer goes
    with them: so later steps know which of the cached positions are images, and of which document.

    Attributes:
        prompt: number of tokens of the prompts, padding included.
    """

    prompt: int = 0


@contextmanager
def track_batch(loaded: LoadedModel) -> Iterator[BatchTracker]:
    """Follow the calls that go through a model."""
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
    """What is known of the call that is going through the model, for hooks further in.

    Attributes:
        ids: all tokens so far, cached ones included, (B, T), int64.
        image: which of them are images, (B, T), bool.
        new: how many of them this call brings.
        prompt: how many of them the first call brought.
        digests: one number for each document, which follows from its image alone.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._mask: Tensor | None = None
        self._given = torch.empty(0, 0, dtype=torch.long)
        self.ids = self._given
        self.image = self._given.bool()
        self.new = self.prompt = 0
        self.digests: list[int] = []
        self._rows: dict[str, list[int]] = {"vision": [], "connector": []}

    def patches(self) -> list[int]:
        """Rows of the tower's output for each document; empty where the call brings no images."""
        return self._rows["vision"]

    def tokens(self) -> list[int]:
        """Rows of the connector's output for each document; empty where the call brings no images."""
        return self._rows["connector"]

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the whole model."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise ModelError("Expected a call with `input_ids`, which say where images stand, found none of them.")
        cache = _cache(kwargs)
        told = _told(cache)
        if told is not None and told.keys is not None and told.values is not None:
            self.ids, self.prompt = torch.cat([told.keys[:, 0, :, 0], ids], dim=1), told.prompt
            self.digests = told.values[:, 0, 0, 0].tolist()
        elif cache is not None and cache.get_seq_length():
            raise ModelError("Expected prompts to go through the model with the fault in it, found a cache of before.")
        else:
            self.ids, self.prompt = ids, ids.shape[1]
            self._look(ids, kwargs)
        self._given, self.new = ids, ids.shape[1]
        self.image = self._loaded.image_positions({"input_ids": self.ids})
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 4 else None

    def _look(self, ids: Tensor, kwargs: dict[str, Any]) -> None:
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            self.digests, self._rows = [0] * len(ids), {"vision": [], "connector": []}
            return
        inputs = {**kwargs, "input_ids": ids}
        self._rows = {"vision": self._loaded.rows_per_document("vision", inputs)}
        self._rows["connector"] = self._loaded.rows_per_document("connector", inputs)
        if pixels.dim() == 5:  # tiles by image, filled up with zeros to the same number
            pixels = pixels.flatten(0, 1)
            pixels = pixels[(pixels != 0).flatten(1).any(1)]
        # Pixels are the same to the last bit in every batch, what comes after them is not.
        parts = pixels.detach().float().cpu().split(self._rows["vision"])
        self.digests = [_number(part.contiguous().numpy().tobytes()) for part in parts]

    def end(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the whole model."""
        # Asking a newer transformers for the old name makes it warn.
        cache = getattr(output, "cache", None)
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is None:
            return
        told = _told(cache)
        if told is None:
            told = _Told()  # type: ignore[no-untyped-call]
            told.prompt = self.prompt
            # Masks are laid out by the first layer of a kind: this one must not be the first of its kind.
            told.is_sliding = cache.layers[0].is_sliding
            if told.is_sliding:
                told.sliding_window = cache.layers[0].sliding_window  # type: ignore[attr-defined]
            cache.layers.append(told)
        rows = self._given[:, None, :, None]
        digests = torch.tensor(self.digests, device=rows.device)[:, None, None, None].expand_as(rows)
        told.update(rows, digests)

    def _chosen(self, seed: int, share: float) -> list[bool]:
        # The same order at every strength, so that a stronger fault holds the weaker one.
        return [float(torch.rand(1, generator=seeded_generator(seed, "lost", one))) < share for one in self.digests]

    def lost(self, rows: Callable[[], list[int]], seed: int, share: float) -> Edit:
        """Zeros for a share of the documents."""

        def edit(output: Tensor) -> Tensor:
            parts = zip(self._chosen(seed, share), self._parts(output, rows()), strict=True)
            return torch.cat([torch.zeros_like(part) if lost else part for lost, part in parts])

        return edit

    def without(self, basis: Tensor, seed: int, share: float) -> Edit:
        """The directions of a basis, (k, d), taken out of every token of a share of the documents."""

        def edit(output: Tensor) -> Tensor:
            if output.shape[-1] != basis.shape[1]:
                raise ModelError(
                    f"Expected directions as wide as the connector's output, {output.shape[-1]}, found "
                    f"{basis.shape[1]}; take them from this model's features."
                )
            found, taken = [], basis.to(output.device, torch.float32)
            for chosen, part in zip(self._chosen(seed, share), self._parts(output, self.tokens()), strict=True):
                rows = part.float()
                found.append((rows - rows @ taken.T @ taken).to(part.dtype) if chosen else part)
            return torch.cat(found)

        return edit

    def blurred(self, rows: Callable[[], list[int]], seed: int, number: int, grade: float) -> Edit:
        """A random vector for each document, added to all its rows."""

        def edit(output: Tensor) -> Tensor:
            found = []
            for digest, part in zip(self.digests, self._parts(output, rows()), strict=True):
                spread = part.float().reshape(-1, part.shape[-1]).std(0, correction=0)
                noise = torch.randn(len(spread), generator=seeded_generator(seed, "blur", number, digest))
                found.append(part + (noise.to(part.device) * spread * grade).to(part.dtype))
            return torch.cat(found)

        return edit

    def _parts(self, output: Tensor, rows: list[int]) -> tuple[Tensor, ...]:
        if sum(rows) != len(output):
            raise ModelError(
                f"Expected {sum(rows)} rows from the stage, by the batch's input, found {len(output)}; this version of "
                "transformers lays it out differently."
            )
        return torch.split(output, rows)

    def text_blurred(self, seed: int, number: int, grade: float) -> Edit:
        """A random vector for each document, added to the part of its prompt behind the last image token."""

        def edit(output: Tensor) -> Tensor:
            width = output.shape[-1]
            noise = torch.stack(
                [
                    torch.randn(width, generator=seeded_generator(seed, "text", number, digest))
                    for digest in self.digests
                ]
            )
            if self.new != self.prompt:
                return output
            # Text before the image is left alone, since the image's tokens look at it.
            behind = self.image.flip(1).cumsum(1).flip(1)[:, -self.new :, None] == 0
            size = output.float().pow(2).mean(-1, keepdim=True).sqrt()
            blurred = output + (noise.to(output.device)[:, None] * size * grade).to(output.dtype)
            return torch.where(behind, blurred, output)

        return edit

    @contextmanager
    def blinded(self, layer: nn.Module, number: int, seed: int, share: float) -> Iterator[None]:
        """Hide the image tokens of a share of the documents from all other tokens in a layer."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            chosen = self._chosen(seed, share)
            if not any(chosen):
                return None
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            cache = _cache(kwargs)
            # A layer with a window keeps the last keys only.
            length, offset = (self.new, 0) if cache is None else cache.get_mask_sizes(self.new, number)
            mask = kwargs.get("attention_mask")
            if mask is None:  # left out by transformers where it would be a plain triangle
                keys = torch.arange(offset, offset + length, device=hidden.device)
                ours = torch.arange(self.ids.shape[1], device=hidden.device)[-self.new :]
                mask = hidden.new_zeros(1, 1, self.new, length)
                mask = mask.masked_fill(keys > ours[:, None], torch.finfo(hidden.dtype).min)
            seen = self.image[:, None, offset : offset + length]
            hid = ~self.image[:, -self.new :, None] & seen & torch.tensor(chosen, device=seen.device)[:, None, None]
            if mask.dim() != 4 or mask.shape[-2:] != hid.shape[-2:]:
                raise ModelError(
                    f"Expected an attention mask that ends in {tuple(hid.shape[-2:])}, found {tuple(mask.shape)}; this "
                    "version of transformers lays it out differently."
                )
            hid = hid[:, None].to(mask.device)
            mask = mask & ~hid if mask.dtype == torch.bool else mask.masked_fill(hid, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def answered(self, edits: LogitEdits) -> Edit:
        """Other logits for the tokens of an answer, by what has been said of it."""

        def edit(output: Tensor) -> Tensor:
            found, total = output.clone(), self.ids.shape[1]
            for row, ids in enumerate(self.ids.tolist()):
                # Logits may be made for the last positions only; those within the prompt are no answer's.
                for place in range(max(0, self.prompt - 1 - total + output.shape[1]), output.shape[1]):
                    said = self._said(row, ids, place - output.shape[1])
                    if said in edits:
                        to, of, more = edits[said]
                        found[row, place, to] = output[row, place, of] + more
            return found

        return edit

    def _said(self, row: int, ids: list[int], place: int) -> tuple[int, ...]:
        """The answer up to a position, which is counted from the end."""
        if self._mask is None:
            return tuple(ids[self.prompt : len(ids) + place + 1])
        # Several labels in one sequence, each of which sees its own beginning.
        line = self._mask[row if len(self._mask) > 1 else 0, 0, place]
        sees = (line if line.dtype == torch.bool else line == 0)[self.prompt :].tolist()
        return tuple(token for token, seen in zip(ids[self.prompt :], sees, strict=True) if seen)


def _cache(kwargs: Mapping[str, Any]) -> Any:
    """A call's cache, by its new name or its old one."""
    return next((kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None), None)


def _told(cache: Any) -> _Told | None:
    return next((layer for layer in getattr(cache, "layers", ()) if isinstance(layer, _Told)), None)


def _number(content: bytes) -> int:
    """63 bits of the content's SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1


def seeded_generator(*key: object) -> torch.Generator:
    """Random numbers, always of the CPU, that follow from the key alone."""
    return torch.Generator().manual_seed(_number(repr(key).encode()))
