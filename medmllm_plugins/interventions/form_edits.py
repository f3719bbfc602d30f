"""Edits that keep what a module's output says and change the form in which it says it.

A probe that is fitted after the edit finds as much as before; the next module, which learned the old form, does not.
The edits are functions of a seed and of the width, the same for all documents. They take tensors with the feature axis
last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions.model_edits import Change, Edit, seeded_generator
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import replaced_forward

# Features of each row.


def flip_signs(seed: int, share: float) -> Edit:
    """Change the sign of a random fraction of the features."""

    def edit(output: Tensor) -> Tensor:
        flipped = _chosen(output.shape[-1], share, seed, "signs").to(output.device)
        return torch.where(flipped, -output, output)

    return edit


def permute_features(seed: int, share: float) -> Edit:
    """Exchange a random fraction of the features among each other in a ring."""

    def edit(output: Tensor) -> Tensor:
        return output[..., ring(output.shape[-1], share, seed, "features").to(output.device)]

    return edit


def rotate(seed: int, share: float) -> Edit:
    """Rotate a random fraction of the features by a random orthogonal matrix."""

    def edit(output: Tensor) -> Tensor:
        chosen = _chosen(output.shape[-1], share, seed, "rotated").nonzero().squeeze(1).to(output.device)
        matrix = random_orthogonal(len(chosen), seed, "rotation").to(output.device)
        rotated = output.clone()
        rotated[..., chosen] = (output[..., chosen].float() @ matrix).to(output.dtype)
        return rotated

    return edit


def offset(seed: int, grade: float) -> Edit:
    """Add the same random vector to every row, in multiples of the row's root mean square."""

    def edit(output: Tensor) -> Tensor:
        direction = torch.randn(output.shape[-1], generator=seeded_generator(seed, "offset")).to(output.device)
        size = output.float().pow(2).mean(-1, keepdim=True).sqrt()
        return output + (grade * size * direction).to(output.dtype)

    return edit


def scale(factor: float) -> Edit:
    """Multiply by a factor."""

    def edit(output: Tensor) -> Tensor:
        return output * factor

    return edit


def project(seed: int, rank: float) -> Edit:
    """Project to a random subspace of a given dimension, and embed it again at the same total variance."""

    def edit(output: Tensor) -> Tensor:
        width = output.shape[-1]
        basis = random_orthogonal(width, seed, "subspace")[: int(rank)].to(output.device)
        projected: Tensor = (output.float() @ basis.T @ basis) * (width / len(basis)) ** 0.5
        return projected.to(output.dtype)

    return edit


def take_absolute(seed: int, share: float) -> Edit:
    """Replace a random fraction of the features by their absolute values."""

    def edit(output: Tensor) -> Tensor:
        chosen = _chosen(output.shape[-1], share, seed, "absolute").to(output.device)
        return torch.where(chosen, output.abs(), output)

    return edit


def amplify_few(seed: int, factor: float) -> Edit:
    """Multiply four random features by a factor, as in models with massive activations."""

    def edit(output: Tensor) -> Tensor:
        chosen = _chosen(output.shape[-1], 4 / output.shape[-1], seed, "amplified").to(output.device)
        return torch.where(chosen, output * factor, output)

    return edit


def rotate_heads(seed: int, share: float, width: int) -> Edit:
    """Rotate the vectors of a fraction of the attention heads, each of ``width`` features, by random matrices."""

    def edit(output: Tensor) -> Tensor:
        heads = output.float().reshape(*output.shape[:-1], -1, width)
        count = heads.shape[-2]
        matrices = [random_orthogonal(width, seed, "head", number) for number in range(count)]
        kept = ~_chosen(count, share, seed, "heads")
        stacked = torch.stack(matrices)
        stacked[kept] = torch.eye(width)
        return torch.einsum("...hd,hde->...he", heads, stacked.to(output.device)).flatten(-2).to(output.dtype)

    return edit


def drop_features(seed: int, share: float) -> Edit:
    """Set a random fraction of the features to zero."""

    def edit(output: Tensor) -> Tensor:
        return output.masked_fill(_chosen(output.shape[-1], share, seed, "dropped").to(output.device), 0.0)

    return edit


# Rows of each document.


def permute_rows(seed: int, share: float) -> Edit:
    """Exchange a random fraction of the rows of (…, rows, d) among each other, alike for all documents."""

    def edit(output: Tensor) -> Tensor:
        return output[..., ring(output.shape[-2], share, seed, "rows").to(output.device), :]

    return edit


def transpose_rows(share: float) -> Edit:
    """Read the first fraction of the features of (…, rows, d) as if rows and features had changed places in memory.

    So does a reshape where a transposition was meant.
    """

    def edit(output: Tensor) -> Tensor:
        count = round(share * output.shape[-1])
        first = output[..., :count]
        return torch.cat([first.mT.reshape(first.shape), output[..., count:]], dim=-1)

    return edit


def reflect_mean(grade: float) -> Edit:
    """Turn the mean over the rows of (…, rows, d) towards its negative, which a grade of 2 reaches."""

    def edit(output: Tensor) -> Tensor:
        return output - grade * output.mean(-2, keepdim=True)

    return edit


def ring(count: int, share: float, *key: object) -> Tensor:
    """Return an order of ``count`` items in which a random fraction of them, at least two, follow each other."""
    chosen = torch.randperm(count, generator=seeded_generator("ring", *key))[: max(2, round(share * count))]
    order = torch.arange(count)
    order[chosen] = chosen.roll(1)
    return order


def random_orthogonal(width: int, *key: object) -> Tensor:
    """Return a random orthogonal matrix, (width, width) float32, drawn uniformly (Haar)."""
    gaussian = torch.randn(width, width, generator=seeded_generator("orthogonal", *key), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    matrix: Tensor = q * r.diagonal().sign()
    return matrix.float()


def _chosen(count: int, share: float, *key: object) -> Tensor:
    # The same order at every strength, so that a stronger fault includes the weaker one.
    rank = torch.randperm(count, generator=seeded_generator(*key)).argsort()
    return rank < max(1, round(share * count))


# Weights and structure.


def add_low_rank(seed: int, block: int, grade: float) -> Change:
    """Add a random matrix of rank 1, in multiples of each matrix's spectral norm."""

    def change(name: str, value: Tensor) -> None:
        generator = seeded_generator(seed, "rank", block, name)
        flat = value.detach().reshape(value.shape[0], -1).float()
        left, right = (torch.randn(size, generator=generator).to(value.device) for size in flat.shape)
        damage = torch.outer(left / left.norm(), right / right.norm()) * torch.linalg.matrix_norm(flat, 2) * grade
        value.add_(damage.reshape(value.shape).to(value.dtype))

    return change


def round_weights(name: str, value: Tensor) -> None:
    """Round a matrix to bfloat16."""
    value.copy_(value.bfloat16())


@contextmanager
def scale_steps(block: nn.Module, factor: float) -> Iterator[None]:
    """Multiply what a block adds to its input by a factor; 0 skips the block, whose keys and values are still kept.

    Not by a hook, which would run after states that are put in later.
    """
    usual = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        entered: Tensor = args[0] if args else kwargs["hidden_states"]
        output = usual(*args, **kwargs)
        left = output[0] if isinstance(output, tuple) else output
        scaled = entered if factor == 0 else entered + factor * (left - entered)
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    with replaced_forward(block, forward):
        yield


@contextmanager
def scale_attention(blocks: Sequence[nn.Module], factor: float) -> Iterator[None]:
    """Multiply the attention logits of some blocks by a factor.

    Raises:
        ModelError: their attention has no attribute ``scaling``, which transformers multiplies them by.
    """
    modules: list[Any] = [
        module for block in blocks for module in block.modules() if isinstance(getattr(module, "scaling", None), float)
    ]
    if not modules:
        raise ModelError("Expected attention modules with a number `scaling`, got none in the blocks of the LLM.")
    originals = [module.scaling for module in modules]
    for module in modules:
        module.scaling *= factor
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.scaling = original


@contextmanager
def change_rope(loaded: LoadedModel, factor: float) -> Iterator[None]:
    """Multiply the base of the LLM's rotary position embeddings by a factor.

    The frequencies are powers of the base with exponents from 0 to -1; the lowest is divided by the factor.

    Raises:
        ModelError: the LLM has no such embeddings.
    """
    buffers = [
        value
        for module in rotary_modules(loaded)
        for name, value in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name
    ]
    originals = [value.clone() for value in buffers]
    try:
        for value in buffers:
            value.mul_(float(factor) ** -torch.linspace(0, 1, len(value), device=value.device))
        yield
    finally:
        for value, original in zip(buffers, originals, strict=True):
            value.copy_(original)


def rotary_modules(loaded: LoadedModel) -> list[nn.Module]:
    """Return the modules of the LLM that compute rotary position embeddings.

    Raises:
        ModelError: it has none.
    """
    llm = loaded.model.get_submodule(loaded.family.llm_blocks.rpartition(".")[0])
    modules = [
        module for module in llm.modules() if any("inv_freq" in name for name, _ in module.named_buffers(recurse=False))
    ]
    if not modules:
        raise ModelError(f"{loaded.family.title}: expected rotary position embeddings in the LLM, got none.")
    return modules


@contextmanager
def exchange_weights(first: nn.Module, second: nn.Module) -> Iterator[None]:
    """Let two blocks of the same layout work with each other's weights.

    The blocks themselves stay where they are, because each may have its own attention mask and place in the cache.

    Raises:
        ModelError: their weights have other names or shapes.
    """
    pairs = list(zip(first.named_parameters(), second.named_parameters(), strict=False))
    if not same_layout(first, second):
        raise ModelError(
            f"Expected two blocks with weights of the same names and shapes, got {type(first).__name__} and "
            f"{type(second).__name__} with different ones. Exchange blocks of one kind."
        )

    def exchange() -> None:
        for (_, weight), (_, other) in pairs:
            weight.data, other.data = other.data, weight.data

    exchange()
    try:
        yield
    finally:
        exchange()


def same_layout(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two blocks have weights of the same names and shapes."""
    shapes = [{name: tensor.shape for name, tensor in block.named_parameters()} for block in (first, second)]
    return shapes[0] == shapes[1]


def attention_parts(blocks: Sequence[nn.Module], *names: str) -> list[tuple[nn.Module, nn.Module]]:
    """Return the projections of blocks' attention with these names, such as ``v_proj``, each behind its block.

    Blocks that have none are left out: in Gemma 4 values may be the keys, or both those of an earlier block.

    Raises:
        ModelError: no block has any.
    """
    pairs = [
        (block, module)
        for block in blocks
        for name, module in block.named_modules()
        if name.rpartition(".")[2] in names
    ]
    if not pairs:
        raise ModelError(f"{type(blocks[0]).__name__}: expected projections named {names}, got none.")
    return pairs
