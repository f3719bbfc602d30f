"""A document's pixel values cut into the tower's patches, and put together again."""

from __future__ import annotations

import math

from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel

CHANNELS = 3


def to_patches(loaded: LoadedModel, pixel_values: Tensor) -> Tensor:
    """Cut one document's pixel values into patches, differentiably.

    Where the sides of tiles are no whole number of patches the tower leaves the remainder out, and so does this.

    Pixel values are flat, (P, 3 * T * p * p), channel first; flat by picture and padded, (pictures, P, p * p * 3),
    channel last; or tiles, (..., 3, H, W).

    Returns:
        (n, c, p, p): flat ones in their order, others tile after tile, each row by row. c is 3, or 3 * T where the
        tower takes T equal frames of a picture (Qwen: 2), channel first: red 0 … red T - 1, green 0 ….

    Raises:
        ModelError: the layout is another, or flat and not of whole patches.
    """
    side = loaded.family.patch_side(loaded.model)
    if pixel_values.dim() == 2:
        return pixel_values.reshape(len(pixel_values), _flat_channels(side, pixel_values), side, side)
    if pixel_values.dim() == 3:
        channels = _flat_channels(side, pixel_values)
        return pixel_values.reshape(-1, side, side, channels).movedim(-1, 1)
    down, across = _counts(side, pixel_values)
    whole = pixel_values[..., : down * side, : across * side]
    cut = whole.reshape(-1, CHANNELS, down, side, across, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, CHANNELS, side, side)


def from_patches(loaded: LoadedModel, patches: Tensor, like: Tensor) -> Tensor:
    """Put patches, (n, c, p, p), together in the layout of ``like``: the inverse of :func:`to_patches`.

    Returns:
        Of the shape of ``like``, its values those of ``patches``; where tiles have a remainder, that of ``like``.

    Raises:
        ModelError: the layout of ``like`` is unknown, or holds another number of patches.
    """
    side = loaded.family.patch_side(loaded.model)
    if like.dim() == 2:
        wanted: tuple[int, ...] = (len(like), _flat_channels(side, like), side, side)
    elif like.dim() == 3:
        wanted = (math.prod(like.shape[:2]), _flat_channels(side, like), side, side)
    else:
        down, across = _counts(side, like)
        wanted = (math.prod(like.shape[:-3]) * down * across, CHANNELS, side, side)
    if tuple(patches.shape) != wanted:
        raise ModelError(f"Expected patches {wanted} for pixel values {tuple(like.shape)}, got {patches.shape}.")
    if like.dim() == 2:
        return patches.reshape(like.shape)
    if like.dim() == 3:
        return patches.movedim(1, -1).reshape(like.shape)
    tiles = patches.reshape(-1, down, across, CHANNELS, side, side)
    height, width = down * side, across * side
    cut = tiles.permute(0, 3, 1, 4, 2, 5).reshape(*like.shape[:-2], height, width)
    if cut.shape == like.shape:
        return cut
    joined = like.to(cut).clone()
    joined[..., :height, :width] = cut
    return joined


def _flat_channels(side: int, flat: Tensor) -> int:
    channels, rest = divmod(flat.shape[-1], side**2)
    if rest or channels % CHANNELS or not channels:
        raise ModelError(
            f"Expected rows of 3 x frames x {side} x {side} pixel values, since patches have {side} pixels a side, "
            f"got rows of {flat.shape[-1]}."
        )
    return channels


def _counts(side: int, tiles: Tensor) -> tuple[int, int]:
    """Patches down and across a tile."""
    if tiles.dim() < 4 or tiles.shape[-3] != CHANNELS or min(tiles.shape[-2:]) < side:
        raise ModelError(
            f"Expected pixel values (…, 3, H, W) with sides of at least a patch of {side} pixels, or flat patches, "
            f"got {tuple(tiles.shape)}."
        )
    return tiles.shape[-2] // side, tiles.shape[-1] // side
