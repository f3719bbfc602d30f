"""Where a model's patches lie on pictures, measured: its processor is shown pictures whose colours encode positions.

Processors resize, crop, pad and tile, each in its own way and by many settings; what they do depends on the pictures'
sizes alone. So pictures of those sizes are prepared in which a pixel's colour encodes its column or its row; others are
black and white (what stays the same is padding), or encode the picture's number. A regular lattice is fitted to the
result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.attribution.cells import Cells, FloatArray, IntArray, make_cells
from medmllm_plugins.attribution.patches import CHANNELS, to_patches
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel

Sizes = tuple[tuple[int, int], ...]
"""Width and height of each picture."""

QUESTION: Final = "What is shown?"
_LOW, _HIGH = 32, 223
"""Levels between which ramps run: beyond, sharp resampling filters would be cut off at black and white."""
_RUNS = 2
_NOISE = 24 * 0.41 / (_HIGH - _LOW) / CHANNELS / _RUNS
"""24 standard deviations of a position decoded from levels that were rounded twice. An end of a line fitted to k of
them is off by 4 over the root of k, and by more where sizes are nearly alike, so that roundings come in long waves."""
_DIGITS = 16
"""Levels of a channel that encode a digit of a picture's number."""
_EDGE = 3
"""Pixels within a picture's edge for which resampling filters (Lanczos at most) reach beyond it."""
_CACHE_SIZE = 64
"""Sets of sizes that are remembered for a model."""
_cache: WeakKeyDictionary[LoadedModel, dict[Sizes, MeasuredPatches]] = WeakKeyDictionary()


class MeasuredPatches(NamedTuple):
    """Cells in the order of :func:`medmllm_plugins.attribution.patches.to_patches`, and the shape of the pixels."""

    cells: Cells
    shape: tuple[int, ...]


def measured_patches(loaded: LoadedModel, sizes: Sizes) -> MeasuredPatches:
    """Measure where patches lie; once for a model and sizes.

    Raises:
        ModelError: the processor lays pictures out in a way that is no regular lattice.
    """
    cached = _cache.setdefault(loaded, {})
    if sizes not in cached:
        while len(cached) >= _CACHE_SIZE:
            cached.pop(next(iter(cached)))
        cached[sizes] = _measure(_plain(loaded), sizes)
    return cached[sizes]


def _plain(loaded: LoadedModel) -> LoadedModel:
    """Return the same model, whose input is made in full precision and on the CPU."""
    plain = copy.copy(loaded)
    plain.device, plain.dtype = torch.device("cpu"), torch.float32
    return plain


def _measure(loaded: LoadedModel, sizes: Sizes) -> MeasuredPatches:
    black, inputs = _prepared(loaded, [Image.new("RGB", size) for size in sizes])
    white, _ = _prepared(loaded, [Image.new("RGB", size, (255, 255, 255)) for size in sizes])
    span = _images(loaded, white - black)
    cover = span / _usual(span)

    def levels(pictures: Sequence[Image.Image]) -> Tensor:
        """(n, 3, H, W), 0 to 255; meaningless on padding."""
        values = _images(loaded, _prepared(loaded, pictures)[0] - black)
        return torch.where(cover > 0.5, values / span * 255, 0)

    across, down = (
        torch.stack([_positions(levels([_ramp(size, axis, run) for size in sizes])) for run in range(_RUNS)]).mean(0)
        for axis in (0, 1)
    )
    number = _numbers(levels([_numbered(index, size) for index, size in enumerate(sizes)]))
    decoded = _Decoded(cover.mean(1).double().numpy(), across.double().numpy(), down.double().numpy(), number.numpy())
    if black.dim() == 2:
        cells = _from_grids(decoded, inputs["image_grid_thw"].tolist())
    else:
        cells = _from_tiles(decoded, loaded.family.patch_side(loaded.model))
    if int(cells.picture.max(initial=-1)) >= len(sizes):
        raise _irregular("a patch that shows none of the pictures")
    return MeasuredPatches(cells, tuple(black.shape))


class _Decoded(NamedTuple):
    """Cover, position in the picture (0 to 1) and picture of each pixel of tiles or flat patches, (n, H, W) each."""

    cover: FloatArray
    across: FloatArray
    down: FloatArray
    number: IntArray


def _prepared(loaded: LoadedModel, pictures: Sequence[Image.Image]) -> tuple[Tensor, Mapping[str, Tensor]]:
    shown = pictures[0] if loaded.shows == "image" else pictures
    inputs = loaded.prepare([QUESTION], [shown])
    return inputs["pixel_values"].detach().float().cpu(), inputs


def _images(loaded: LoadedModel, pixels: Tensor) -> Tensor:
    """(n, 3, H, W): tiles, or of flat patches the first of their equal frames."""
    if pixels.dim() != 2:
        return pixels.reshape(-1, *pixels.shape[-3:])
    patches = to_patches(loaded, pixels)
    return patches.reshape(len(patches), CHANNELS, -1, *patches.shape[-2:])[:, :, 0]


def _usual(span: Tensor) -> Tensor:
    """Return the difference of white and black in each channel, (3, 1, 1): the median of what is no padding."""
    medians = [
        channel[channel > channel.max() / 2].median() for channel in span.transpose(0, 1) if float(channel.max()) > 0
    ]
    if len(medians) < CHANNELS:
        raise _irregular("pixel values that are alike for black and white pictures")
    return torch.stack(medians)[:, None, None]


def _ramp(size: tuple[int, int], axis: int, run: int) -> Image.Image:
    """Make a picture that brightens from the left (axis 0) or the top (1), each channel of a run over a part of it."""
    count = size[axis]
    position = (np.arange(count) + 0.5) / count
    # The mean over channels and runs rises evenly, in many more steps than the levels of one channel.
    parts = np.clip(position[:, None] * CHANNELS * _RUNS - np.arange(CHANNELS) - run * CHANNELS, 0, 1)
    line = np.rint(_LOW + parts * (_HIGH - _LOW)).astype(np.uint8)
    line = line[None] if axis == 0 else line[:, None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(line, (size[1], size[0], CHANNELS))))


def _positions(levels: Tensor) -> Tensor:
    """Decode :func:`_ramp`, (n, H, W): the mean over runs is the position, from 0 to 1."""
    return ((levels - _LOW) / (_HIGH - _LOW)).mean(1)


def _numbered(index: int, size: tuple[int, int]) -> Image.Image:
    """Make a picture of one colour, which encodes its number."""
    step = 256 // _DIGITS
    colour = [(index // _DIGITS**digit) % _DIGITS * step + step // 2 for digit in range(CHANNELS)]
    return Image.new("RGB", size, (colour[0], colour[1], colour[2]))


def _numbers(levels: Tensor) -> Tensor:
    """Decode :func:`_numbered`, (n, H, W), int64."""
    digits = (levels * _DIGITS / 256).floor().long()
    weights = torch.tensor([_DIGITS**digit for digit in range(CHANNELS)])[:, None, None]
    return (digits * weights).sum(1)


def _from_grids(decoded: _Decoded, grids: Sequence[Sequence[int]]) -> Cells:
    """Return cells of flat patches: each picture is cut into its grid, in an order that is measured."""
    if decoded.cover.min(initial=1) < 0.99:
        raise _irregular("padding among patches in a grid")
    ends = np.cumsum([math.prod(grid) for grid in grids])
    if not len(grids) or int(ends[-1]) != len(decoded.cover) or any(grid[0] != 1 for grid in grids):
        raise _irregular(f"grids {list(grids)} for {len(decoded.cover)} patches of pictures")
    boxes, numbers = [], []
    for end, (_, rows, columns) in zip(ends, grids, strict=True):
        own = slice(int(end) - rows * columns, int(end))
        column = np.floor(decoded.across[own].mean((1, 2)) * columns).astype(np.int64)
        row = np.floor(decoded.down[own].mean((1, 2)) * rows).astype(np.int64)
        if len({*zip(row.tolist(), column.tolist(), strict=True)}) < rows * columns:
            raise _irregular(f"two patches at one position of a grid of {rows} x {columns}")
        boxes.append(np.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], axis=1))
        numbers.append(np.median(decoded.number[own].reshape(rows * columns, -1), axis=1).astype(np.int64))
    return make_cells(np.concatenate(numbers), np.concatenate(boxes))


def _from_tiles(decoded: _Decoded, side: int) -> Cells:
    """Return cells of tiles: each shows a part of one picture, or is padding in part or in all."""
    height, width = decoded.cover.shape[1:]
    boxes, numbers = [], []
    for cover, across, down, number in zip(decoded.cover, decoded.across, decoded.down, decoded.number, strict=True):
        whole = np.abs(cover - 1) < 0.01
        if not whole.any():
            boxes.append(np.full((height // side * (width // side), 4), np.nan))
            numbers.append(np.full(len(boxes[-1]), -1))
            continue
        edges = [_edges(cover, whole, across, side), _edges(cover.T, whole.T, down.T, side)]
        (left, right), (top, bottom) = ((lines[:-1], lines[1:]) for lines, _ in edges)
        grid = np.stack([np.broadcast_to(part, (len(top), len(left))) for part in (left, top[:, None])], axis=-1)
        ends = np.stack([np.broadcast_to(part, (len(top), len(left))) for part in (right, bottom[:, None])], axis=-1)
        box = np.concatenate([grid, ends], axis=-1).reshape(-1, 4)
        # By less than a 20th of a pixel a patch reaches into the picture only by rounding.
        least = np.array([slack for _, slack in edges])
        covered = (np.minimum(box[:, 2:], 1) - np.maximum(box[:, :2], 0) > least).all(1)
        numbers.append(np.where(covered, int(np.median(number[whole])), -1))
        boxes.append(box)
    return make_cells(np.concatenate(numbers), np.concatenate(boxes))


def _edges(
    cover: FloatArray, whole: npt.NDArray[np.bool_], position: FloatArray, side: int
) -> tuple[FloatArray, float]:
    """Return the borders of patches in the picture along a tile's last axis, and a 20th of a pixel there.

    A pixel of the tile at x (its borders at whole numbers) shows the picture at (x - start) / count: ``count`` pixels
    are the whole of it, the first at ``start``.
    """
    length = cover.shape[1]
    seen = np.flatnonzero(whole.any(0))
    inner, rows = seen[_EDGE:-_EDGE], np.flatnonzero(whole.any(1))
    # Padding shines through near a picture's edge; of a narrow picture the middle is used.
    rows = rows[_EDGE:-_EDGE] if len(rows) > 2 * _EDGE else rows[len(rows) // 2 : len(rows) // 2 + 1]
    count = start = math.nan
    if len(inner) >= 4:
        values: FloatArray = np.asarray(position[np.ix_(rows, inner)].mean(0), np.float64)
        slope, offset = np.polyfit(inner + 0.5, values, 1).tolist()
        if slope <= 0 or np.abs(slope * (inner + 0.5) + offset - values).max() > 0.05:
            raise _irregular("a picture that is not evenly stretched over its tile")
        # Where a pixel is covered in whole, the picture reaches.
        start = min(-offset / slope, float(seen[0]))
        end = max((1 - offset) / slope, float(seen[-1]) + 1)
        count, start = _rounded(np.asarray(inner + 0.5, np.float64), values, end - start, start)
    else:
        # Too small for a line to be fitted: taken for whole, what it covers is its size.
        profile = cover[rows].mean(0)
        count = float(profile.sum())
        start = float((profile * (np.arange(length) + 0.5)).sum() / count - count / 2)
    lines = (np.arange(0, length + 1, side) - start) / count
    return lines, 0.05 / count


def _rounded(pixels: FloatArray, values: FloatArray, count: float, start: float) -> tuple[float, float]:
    """Round the line's numbers, which are whole unless padding came before resizing, if the line fits as well.

    The line was fitted to pixels' middles, (k,), and their positions in the picture, a little off as colours have 256
    levels only; ``count`` pixels from ``start`` are the whole of the picture.
    """
    sizes = range(max(1, round(count) - 3), round(count) + 4)
    tried = [(size, round(float((pixels - size * values).mean()))) for size in sizes]
    lines = [(pixels - first) / size for size, first in tried]
    best = int(np.argmin([np.square(line - values).sum() for line in lines]))
    apart = np.abs(lines[best] - (pixels - start) / count).max()
    return tried[best] if apart < _NOISE / math.sqrt(len(pixels)) else (count, start)


def _irregular(problem: str) -> ModelError:
    return ModelError(
        f"Expected a processor that resizes, crops, pads or tiles pictures into a regular lattice, got {problem}; "
        "where patches lie on the pictures cannot be measured for this model."
    )
