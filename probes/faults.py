"""Planted faults: a stage of a model is broken on purpose, by a known amount, and mended again.

A diagnosis that says in which stage a model loses the class is proven on models whose broken stage is known. So a fault
does two things. It destroys the class at its own stage for a linear probe that is fitted anew behind it, and does not
merely move the features, which such a probe would see through while the parts behind it stumble. And it leaves all
stages before its own as they are, to the last bit.

Trained models hold the class many times over: a single layer that still sees the image, a handful of heads or image
tokens, or two random directions of the connector's output, are enough for a probe to find it again. That is why some
kinds take the image away altogether from a share of the documents, and others bury it in noise. Both follow from the
seed and the image's content, so that neither the order of documents nor their batches matter.

Stages are found by the names of :mod:`medmllm_plugins.models.stages`, so that faults work on any family. Edited weights
are put back bit for bit and hooks are taken off when the context ends, also by an exception.

Source: Belrose et al., "LEACE", arXiv 2306.03819 (no linear probe finds classes whose means are all equal).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from medmllm_plugins.errors import ModelError, OptionError, shown
from medmllm_plugins.models.families import stage
from medmllm_plugins.models.interface import LoadedModel, Question
from medmllm_plugins.models.stages import places

Mode = Literal["vision", "connector", "comprehension", "mapping"]
Strength = Literal[1, 2, 3]

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
"""The four ways of losing the class, in the order in which an image passes the stages."""
STRENGTHS: Final[tuple[Strength, ...]] = get_args(Strength)
"""Mild, clear, heavy."""
KINDS: Final[Mapping[Mode, tuple[str, ...]]] = {
    "vision": ("tower_noise", "tower_reset", "tower_blur", "tower_lost"),
    "connector": ("directions_removed", "connector_blur", "connector_lost"),
    "comprehension": ("blind", "text_blur"),
    "mapping": ("labels_permuted", "label_bias"),
}
"""Names of faults by mode:

- ``tower_noise``: Gaussian noise on all matrices of the vision blocks, as a multiple of each matrix's own spread.
- ``tower_reset``: a share of all weights of the vision blocks drawn anew, as before training.
- ``tower_blur``: behind every vision block, one random vector for each document is added to all its patches, as a
  multiple of the spread of each feature over them.
- ``tower_lost``: the vision blocks return zeros for a share of the documents.
- ``directions_removed``: the connector's output loses the directions given, for a share of the documents.
- ``connector_blur``, ``connector_lost``: as for the tower, behind the connector.
- ``blind``: for a share of the documents nothing but image tokens attends to image tokens, in any layer of the LLM.
- ``text_blur``: behind every layer of the LLM, one random vector for each document is added to all positions of the
  prompt behind the last image token, as a multiple of each position's own root mean square.
- ``labels_permuted``: where the labels' tokens part, the logits of two, of more than half or of all of them change
  places in a ring.
- ``label_bias``: the logit of the token by which one label parts from the others is raised, in nats.
"""
_GRADES: Final[Mapping[str, tuple[float, float, float]]] = {
    "tower_noise": (0.5, 1.0, 2.0),
    "tower_reset": (0.25, 0.5, 1.0),
    "tower_blur": (1.0, 1.5, 3.0),
    "tower_lost": (0.1, 0.3, 0.6),
    "directions_removed": (0.1, 0.4, 1.0),
    "connector_blur": (8.0, 20.0, 40.0),
    "connector_lost": (0.1, 0.3, 0.6),
    "blind": (0.1, 0.4, 1.0),
    "text_blur": (0.9, 1.25, 1.5),
    "labels_permuted": (0.0, 0.5, 1.0),
    "label_bias": (4.0, 8.0, 10.0),
}
"""How much each strength is, set on the embedded demo; shares, multiples or nats, see :data:`KINDS`.

Shares of documents mean the same for every model. How much noise or bias a model bears is its own matter: on another
one than the demo, look at the probe behind the broken stage before reading more into a strength than its order.
"""

_Edit = Callable[[Tensor], Tensor]
_Change = Callable[[str, Tensor], None]
_Trie = Mapping[tuple[int, ...], tuple[list[int], list[int], float]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is broken, and how much.

    Attributes:
        name: one of :data:`KINDS`, or ``"none"``.
        mode: the stage it belongs to; ``"none"`` for a healthy model.
        strength: 1 is mild, at 2 and 3 the damage to its own stage is clear.
        seed: decides all that is random about it.

    Raises:
        OptionError: there is no such fault.
    """

    name: str
    mode: Mode | Literal["none"]
    strength: Strength = 1
    seed: int = 0

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {"none": ("none",)}
        known.update((mode, names) for mode, names in KINDS.items())
        if self.name not in known.get(self.mode, ()):
            raise OptionError(
                f"Expected `name` and `mode` of a fault to be one of {known}, but got {shown(self.name)} and "
                f"{shown(self.mode)}."
            )
        if self.strength not in STRENGTHS:
            raise OptionError(f"Expected `strength` of a fault to be 1, 2 or 3, but got {shown(self.strength)}.")


HEALTHY: Final = Fault("none", "none")
"""No fault: the model as it is."""


def all_faults(seed: int = 0, modes: Sequence[Mode] = MODES) -> tuple[Fault, ...]:
    """Every kind at every strength, in the order of the stages."""
    return tuple(Fault(name, mode, strength, seed) for mode in modes for name in KINDS[mode] for strength in STRENGTHS)


@contextmanager
def planted(
    loaded: LoadedModel,
    fault: Fault,
    *,
    directions: Mapping[str, Tensor] | None = None,
    question: Question | None = None,
    labels: Sequence[str] = (),
) -> Iterator[None]:
    """Break a model while the context is open.

    Whole batches must begin and end inside. A cache that was filled before, or one that outlives the context, is
    not what the other model would have made.

    Args:
        loaded: the model; its weights, and hooks on its modules, are the only things touched.
        fault: what to break.
        directions: needed by ``directions_removed`` only: by locus, the directions that tell the classes apart in the
            mean over its tokens, (k, d), taken from train documents; see :func:`class_directions`. Only
            ``"connector"`` is read.
        question: needed by faults of the mapping only: a question as it will be asked, since a label's tokens may
            hang on the end of the prompt.
        labels: needed by faults of the mapping only: the labels, at least two.

    Raises:
        OptionError: what the fault needs was not given.
        ModelError: the model cannot be broken in this way: its weights are quantised, its attention takes no masks, or
            a stage returns something else than a tensor.
    """
    with ExitStack() as stack:
        for context in _contexts(loaded, fault, directions, question, labels, stack):
            stack.enter_context(context)
        yield


def _contexts(
    loaded: LoadedModel,
    fault: Fault,
    directions: Mapping[str, Tensor] | None,
    question: Question | None,
    labels: Sequence[str],
    stack: ExitStack,
) -> list[AbstractContextManager[None]]:
    """One context for each module that is edited; what they share is entered on the stack at once."""
    name, seed = fault.name, fault.seed
    if fault.mode == "none":
        return []
    grade = _GRADES[name][fault.strength - 1]
    if fault.mode == "vision":
        tower = read_blocks(loaded)
        if name == "tower_noise":
            return [_changed(block, _noised(seed, number, grade)) for number, block in enumerate(tower)]
        if name == "tower_reset":
            spread = _initial_spread(loaded)
            return [_changed(block, _redrawn(seed, number, grade, spread)) for number, block in enumerate(tower)]
        batch = stack.enter_context(_watched(loaded))
        if name == "tower_lost":
            return [_edited(block, batch.lost(batch.patches, seed, grade)) for block in tower]
        return [_edited(block, batch.blurred(batch.patches, seed, n, grade)) for n, block in enumerate(tower)]
    if fault.mode == "connector":
        connectors = _connectors(loaded)
        basis = _basis(directions) if name == "directions_removed" else None
        batch = stack.enter_context(_watched(loaded))
        if basis is not None:
            return [_edited(module, batch.without(basis, seed, grade)) for module in connectors]
        if name == "connector_lost":
            return [_edited(module, batch.lost(batch.tokens, seed, grade)) for module in connectors]
        return [_edited(module, batch.blurred(batch.tokens, seed, n, grade)) for n, module in enumerate(connectors)]
    if fault.mode == "comprehension":
        if name == "blind":
            _check_masks(loaded)
        batch = stack.enter_context(_watched(loaded))
        layers = _layers(loaded)
        if name == "blind":
            return [batch.blinded(layer, number, seed, grade) for number, layer in enumerate(layers)]
        return [_edited(layer, batch.text_blurred(seed, number, grade)) for number, layer in enumerate(layers)]
    ids = _label_ids(loaded, question, labels)
    edits = _permuted(ids, fault, grade) if name == "labels_permuted" else _biased(ids, fault, grade)
    batch = stack.enter_context(_watched(loaded))
    return [_edited(stage(loaded.model, loaded.family.head), batch.answered(edits))]


def class_directions(features: Tensor, labels: Sequence[str]) -> Tensor:
    """The directions in which the means of the classes differ, the widest first.

    Where they are taken out, all classes have the same mean, and no linear probe fitted to these features does better
    than the shares of the classes (LEACE).

    Args:
        features: of N train documents, (N, d).
        labels: their N labels.

    Returns:
        (K - 1, d), float64, orthonormal; K is the number of different labels.

    Raises:
        OptionError: there are not as many labels as features, or fewer than two different ones.
    """
    names = sorted(set(labels))
    if features.dim() != 2 or len(features) != len(labels) or len(names) < 2:
        raise OptionError(
            "Expected `features` of shape (N, d) with N `labels`, at least two of them different, but got "
            f"{tuple(features.shape)} and {len(labels)} labels, {len(names)} different."
        )
    rows, owner = features.double(), torch.tensor([names.index(label) for label in labels], device=features.device)
    means = torch.stack([rows[owner == number].mean(0) for number in range(len(names))])
    directions: Tensor = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh
    return directions[: len(names) - 1]


def read_blocks(loaded: LoadedModel) -> list[nn.Module]:
    """The vision blocks up to the last one that the connector reads: LLaVA's last block may go nowhere."""
    blocks = [place.module for place in places(loaded) if place.part == "vision" and _is_block(place.name)]
    read: Any = getattr(loaded.model.config, "vision_feature_layer", None)
    if read is None:
        return blocks
    # Hidden states are counted with the patch embeddings as number 0.
    several = list(read) if isinstance(read, list | tuple) else [read]
    return blocks[: max(int(one) if one >= 0 else len(blocks) + 1 + int(one) for one in several)]


def _is_block(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


def _layers(loaded: LoadedModel) -> list[nn.Module]:
    return [place.module for place in places(loaded) if place.part == "llm" and _is_block(place.name)]


def _connectors(loaded: LoadedModel) -> list[nn.Module]:
    """The connector, and its like: Qwen3-VL's tower has more of them, which reach deeper layers of the LLM past it."""
    (first,) = (place.module for place in places(loaded) if place.name == "connector")
    if type(first).__module__.startswith("torch."):  # a bare nn.Linear is like many modules
        return [first]
    return [first, *(other for other in loaded.model.modules() if type(other) is type(first) and other is not first)]


def _check_masks(loaded: LoadedModel) -> None:
    text: Any = loaded.model.config.get_text_config()
    kind = text._attn_implementation
    if kind not in ("eager", "sdpa"):
        raise ModelError(
            f"Expected a model with attention 'sdpa' or 'eager', which take a mask for each pair of tokens, found "
            f"{kind!r}; load it with attn_implementation=sdpa."
        )


def _label_ids(loaded: LoadedModel, question: Question | None, labels: Sequence[str]) -> list[tuple[int, ...]]:
    if question is None or len(labels) < 2:
        raise OptionError(
            "Expected `question` and at least two `labels`, which a fault of the answer mapping needs, but got "
            f"{shown(question)} and {shown(labels)}."
        )
    found = [tuple(row) for row in loaded.label_ids(question, labels)]
    if len(set(found)) < len(found):
        raise OptionError(f"Expected labels that differ as tokens, but got {shown(labels)}.")
    return found


def _basis(directions: Mapping[str, Tensor] | None) -> Tensor:
    found = None if directions is None else directions.get("connector")
    if found is None or found.dim() != 2 or not 0 < len(found) <= found.shape[1]:
        raise OptionError(
            "Expected `directions` to hold 'connector', (k, d) with 1 <= k <= d, which directions_removed needs, but "
            f"got {None if found is None else tuple(found.shape)}; class_directions makes them from train features."
        )
    basis: Tensor = torch.linalg.qr(found.detach().double().cpu().T)[0].T
    return basis


# Weights.


@contextmanager
def _changed(module: nn.Module, change: _Change) -> Iterator[None]:
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


def _noised(seed: int, block: int, grade: float) -> _Change:
    def change(name: str, value: Tensor) -> None:
        noise = torch.randn(value.shape, generator=_generator(seed, "noise", block, name))
        value.add_((noise.to(value.device) * value.float().std() * grade).to(value.dtype))

    return change


def _redrawn(seed: int, block: int, grade: float, spread: float) -> _Change:
    def change(name: str, value: Tensor) -> None:
        generator = _generator(seed, "reset", block, name)
        fresh = torch.randn(value.shape, generator=generator) * spread
        # The same order at every strength, so that a stronger fault holds the weaker one.
        chosen = torch.rand(value.shape, generator=generator) < grade
        value.copy_(torch.where(chosen.to(value.device), fresh.to(value), value))

    return change


def _initial_spread(loaded: LoadedModel) -> float:
    config: Any = loaded.model.config
    return float(getattr(config.vision_config, "initializer_range", 0.02))


# Outputs of modules.


@contextmanager
def _edited(module: nn.Module, edit: _Edit) -> Iterator[None]:
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
def _watched(loaded: LoadedModel) -> Iterator[_Batch]:
    batch = _Batch(loaded)
    before = loaded.model.register_forward_pre_hook(batch.begin, with_kwargs=True)
    try:
        after = loaded.model.register_forward_hook(batch.end, with_kwargs=True)
        try:
            yield batch
        finally:
            after.remove()
    finally:
        before.remove()


class _Batch:
    """What is known of the call that is going through the model, for hooks further in.

    Attributes:
        ids: all tokens so far, cached ones included, (B, T), int64.
        image: which of them are images, (B, T), bool.
        new: how many of them this call brings.
        prompt: how many of them the first call brought.
        digests: one number for each document, which follows from its image alone.
        patches: rows of the tower's output for each document; empty where a call brings no images.
        tokens: rows of the connector's output for each document.
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
        return self._rows["vision"]

    def tokens(self) -> list[int]:
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
        self._rows = {"vision": self._loaded.rows_of("vision", inputs)}
        self._rows["connector"] = self._loaded.rows_of("connector", inputs)
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
        return [float(torch.rand(1, generator=_generator(seed, "lost", one))) < share for one in self.digests]

    def lost(self, rows: Callable[[], list[int]], seed: int, share: float) -> _Edit:
        """Zeros for a share of the documents."""

        def edit(output: Tensor) -> Tensor:
            parts = zip(self._chosen(seed, share), self._parts(output, rows()), strict=True)
            return torch.cat([torch.zeros_like(part) if lost else part for lost, part in parts])

        return edit

    def without(self, basis: Tensor, seed: int, share: float) -> _Edit:
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

    def blurred(self, rows: Callable[[], list[int]], seed: int, number: int, grade: float) -> _Edit:
        """A random vector for each document, added to all its rows."""

        def edit(output: Tensor) -> Tensor:
            found = []
            for digest, part in zip(self.digests, self._parts(output, rows()), strict=True):
                spread = part.float().reshape(-1, part.shape[-1]).std(0, correction=0)
                noise = torch.randn(len(spread), generator=_generator(seed, "blur", number, digest))
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

    def text_blurred(self, seed: int, number: int, grade: float) -> _Edit:
        """A random vector for each document, added to the part of its prompt behind the last image token."""

        def edit(output: Tensor) -> Tensor:
            width = output.shape[-1]
            noise = torch.stack(
                [torch.randn(width, generator=_generator(seed, "text", number, digest)) for digest in self.digests]
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

    def answered(self, edits: _Trie) -> _Edit:
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


# Labels.


def _branches(ids: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Where labels part: what they begin with in common, and the tokens that come next; the widest first."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row in ids:
        for depth, token in enumerate(row):
            nexts = found.setdefault(row[:depth], [])
            if token not in nexts:
                nexts.append(token)
    parting = [item for item in found.items() if len(item[1]) > 1]
    return dict(sorted(parting, key=lambda item: (-len(item[1]), len(item[0]))))


def _permuted(ids: Sequence[tuple[int, ...]], fault: Fault, share: float) -> _Trie:
    """A ring of two, more than half or all tokens: at strength 1 where most labels part, otherwise wherever some do.

    Two labels have only each other, so that all strengths are the same; of three, two at strength 2.
    """
    edits = {}
    for before, nexts in list(_branches(ids).items())[: 1 if fault.strength == 1 else None]:
        count = min(len(nexts), max(2, int(len(nexts) * share) + 1))
        order = torch.randperm(len(nexts), generator=_generator(fault.seed, "ring", before)).tolist()[:count]
        ring = [nexts[index] for index in order]
        edits[before] = (ring, ring[1:] + ring[:1], 0.0)
    if not edits:
        raise OptionError("Expected labels that part at a token, but got one that is the beginning of the other.")
    return edits


def _biased(ids: Sequence[tuple[int, ...]], fault: Fault, grade: float) -> _Trie:
    """One label's own token, raised: that of the first step at which no other label goes on with it."""
    own: list[tuple[tuple[int, ...], int]] = []
    for row in ids:
        alone = (d for d in range(len(row)) if sum(other[: d + 1] == row[: d + 1] for other in ids) == 1)
        depth = next(alone, None)
        if depth is not None:  # otherwise it is the beginning of another
            own.append((row[:depth], row[depth]))
    before, token = own[int(torch.randint(len(own), (1,), generator=_generator(fault.seed, "bias")))]
    return {before: ([token], [token], grade)}


def _number(content: bytes) -> int:
    """63 bits of the content's SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1


def _generator(*key: object) -> torch.Generator:
    """Random numbers, always of the CPU, that follow from the key alone."""
    return torch.Generator().manual_seed(_number(repr(key).encode()))
