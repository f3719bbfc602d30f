"""Cells of pictures in which the rows of a layer lie; values painted over them, and sampled from a painted map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import ModelError

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]

_NOTHING = 1e-9
"""Cover, in pixels, that is rounding and no cover."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Where n rows lie on the pictures shown.

    Attributes:
        picture: (n,), int64, which picture, from 0; -1 where a row lies on none: class tokens, separators, text, and
            patches of padding only.
        box: (n, 4), float64, left, top, right and bottom as fractions of that picture's width and height, clipped to 0
            to 1; NaN where ``picture`` is -1.
        whole: (n, 4), the same before it is clipped: a patch that lies partly on padding reaches beyond the picture.

    Raises:
        ModelError: the arrays are not of these shapes.
    """

    picture: IntArray
    box: FloatArray
    whole: FloatArray

    def __post_init__(self) -> None:
        wanted = (*self.picture.shape[:1], 4)
        if self.picture.ndim != 1 or self.box.shape != wanted or self.whole.shape != wanted:
            raise ModelError(
                f"Expected `picture` (n,) and boxes (n, 4), got {self.picture.shape}, {self.box.shape} and "
                f"{self.whole.shape}."
            )

    def __len__(self) -> int:
        return len(self.picture)


def make_cells(picture: IntArray, whole: FloatArray) -> Cells:
    """Make cells of boxes, which may reach beyond the picture; boxes of no picture become NaN."""
    whole = np.where(picture[:, None] >= 0, whole, np.nan)
    return Cells(picture, np.clip(whole, 0, 1), whole)


def united(cells: Cells, rows: IntArray) -> Cells:
    """Return cells of rows that were made from several others each.

    ``rows``, (m, k) int64, say which k of the n cells each new row was made from; -1 for none.

    Returns:
        m cells, each the smallest box around its k; those that lie on no picture are ignored.

    Raises:
        ModelError: a row would lie on two pictures.
    """
    picture = np.where(rows >= 0, cells.picture[rows], -1)
    there = picture >= 0
    owner = picture.max(1, initial=-1)
    if bool((there & (picture != owner[:, None])).any()):
        raise ModelError("Expected a token made from patches of one picture, got one made from patches of several.")
    boxes = cells.whole[rows]  # (m, k, 4)
    low = np.where(there[..., None], boxes[..., :2], np.inf).min(1, initial=np.inf)
    high = np.where(there[..., None], boxes[..., 2:], -np.inf).max(1, initial=-np.inf)
    return make_cells(owner, np.concatenate([low, high], axis=1))


def paint(cells: Cells, values: FloatArray, size: tuple[int, int], pictures: int) -> FloatArray:
    """Lay values over the pictures.

    Where cells overlap, as tiles and the thumbnail of the whole do, a pixel has the mean of their values, each counted
    by the share of the pixel that its cell covers.

    ``values`` are (n,), or (n, p, p) in the cell's rows and columns; those of cells on no picture are left out.
    ``size`` is height and width of the maps.

    Returns:
        (pictures, height, width), float64; NaN where no cell covers any of a pixel, so where a picture was cropped.

    Raises:
        ModelError: the values are not as many as the cells, or a cell lies on a picture beyond the last.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(cells) or values.ndim not in (1, 3):
        raise ModelError(f"Expected {len(cells)} values, one or p x p for each cell, got {values.shape}.")
    _check(cells, pictures)
    height, width = size
    total, cover = np.zeros((pictures, height, width)), np.zeros((pictures, height, width))
    parts = values.reshape(len(values), *(values.shape[1:] or (1, 1)))
    for index in np.flatnonzero(cells.picture >= 0):
        left, top, right, bottom = cells.whole[index]
        first, down = _cover(top, bottom, parts.shape[1], height)
        start, across = _cover(left, right, parts.shape[2], width)
        where = (cells.picture[index], slice(first, first + len(down)), slice(start, start + len(across)))
        total[where] += down @ parts[index] @ across.T
        cover[where] += np.outer(down.sum(1), across.sum(1))
    there = cover > _NOTHING
    return np.where(there, total / np.where(there, cover, 1), np.nan)


def sample(painted: FloatArray, cells: Cells) -> FloatArray:
    """Return the mean of a map, (pictures, height, width), within each cell's box.

    Returns:
        (n,), float64: means over what the box covers, pixels that are NaN left out; NaN for cells on no picture, and
        where all is NaN.

    Raises:
        ModelError: the map has not three axes, or a cell lies on a picture beyond the last.
    """
    if painted.ndim != 3:
        raise ModelError(f"Expected a map (pictures, height, width), got {painted.shape}.")
    _check(cells, len(painted))
    means = np.full(len(cells), np.nan)
    for index in np.flatnonzero(cells.picture >= 0):
        left, top, right, bottom = cells.box[index]
        first, down = _cover(top, bottom, 1, painted.shape[1])
        start, across = _cover(left, right, 1, painted.shape[2])
        seen = painted[cells.picture[index], first : first + len(down), start : start + len(across)]
        weight = np.outer(down, across) * np.isfinite(seen)
        if weight.sum() > _NOTHING:
            means[index] = (weight * np.nan_to_num(seen)).sum() / weight.sum()
    return means


def _check(cells: Cells, pictures: int) -> None:
    last = int(cells.picture.max(initial=-1))
    if last >= pictures:
        raise ModelError(f"Expected cells on {pictures} pictures, got one on picture {last}, counted from 0.")


def _cover(low: float, high: float, parts: int, pixels: int) -> tuple[int, FloatArray]:
    """Return the first pixel along an axis that a stretch covers, and the cover of each by each of its equal parts.

    ``low`` and ``high``, as fractions of the axis, may lie outside of it; covers are (covered pixels, parts), float64.
    """
    edges = np.linspace(low, high, parts + 1) * pixels
    first = min(max(int(np.floor(edges[0])), 0), pixels)
    last = min(max(int(np.ceil(edges[-1])), first), pixels)
    starts = np.arange(first, last, dtype=np.float64)[:, None]
    shared = np.minimum(starts + 1, edges[None, 1:]) - np.maximum(starts, edges[None, :-1])
    return first, np.maximum(shared, 0)
