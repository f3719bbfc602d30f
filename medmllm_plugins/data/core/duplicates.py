"""Near-duplicate pictures, and groups of what must stay on one side of a split.

Two pictures are near-duplicates when both hold: their 64-bit perceptual hashes (DCT hash, C. Zauner, "Implementation
and benchmarking of perceptual image hash functions", 2010) differ in at most :data:`MAX_HAMMING` bits, and their
thumbnails correlate with at least :data:`MIN_CORRELATION`. The hash alone joins most CT slices into one group, as all
show an ellipse on black; the correlation alone chains ultrasound images of different women. On BUSI the number of
pairs is the same for hash distances 6 to 9, which is where the limit stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers.file_facts import THUMBNAIL
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.environment import processors

Pairs: TypeAlias = npt.NDArray[np.intp]
"""``[m, 2]`` indices of two pictures each."""
MAX_HAMMING = 8
"""Largest distance of two near-duplicates' hashes, in bits of 64."""
MIN_CORRELATION = 0.95
"""Smallest Pearson correlation of two near-duplicates' thumbnails."""
MIN_CONTRAST = 1.0
"""Smallest standard deviation of a thumbnail, in grey levels of 255, that counts as structure."""

MAX_PAIRS = 20_000_000
"""Most pairs that are listed; they take 320 MB."""

_HASH_SIDE = 8
_BLOCK = 256
_COLUMNS = 512
"""Hashes are compared 256 with 512 at a time: 1 MB, which stays near the processor."""
_DESCRIBED = 2048
_SLACK = 1e-4
"""What a product of two sketches may lie below the correlation, being rounded."""
_ROUNDING = 1e-5
"""More than single precision makes of a correlation."""
_MAX_THREADS = 8


def near_duplicates(thumbnails: npt.NDArray[np.float32]) -> Pairs:
    """Find all pairs of near-duplicates; see the module for what counts as one.

    The search is exact. Every two hashes are compared, as 64-bit integers, which takes a nanosecond a pair; what passes
    is compared with an upper bound of the correlation, from the lowest frequencies of both thumbnails; and only what
    passes that too is correlated in full. However alike the pictures of a data set are, no step but the last depends
    on it. Memory beside the thumbnails: 0.3 kB a picture (4 kB more where some have no structure), 16 bytes a pair.

    Pictures without structure (contrast below :data:`MIN_CONTRAST`) have no meaningful hash and are in no pair.

    Thumbnails are ``[n, 32, 32]`` grey levels, see :func:`medmllm_plugins.data.readers.file_facts.thumbnail`.

    Returns:
        ``[m, 2]`` indices ``i < j``, in lexicographic order.

    Raises:
        DataError: there are more than :data:`MAX_PAIRS`, as where most pictures are copies of each other.
    """
    with ThreadPoolExecutor(min(processors(), _MAX_THREADS)) as pool:
        starts = range(0, len(thumbnails), _DESCRIBED)
        descriptions = list(pool.map(lambda start: _describe(thumbnails[start : start + _DESCRIBED]), starts))
        if not descriptions:
            return np.empty((0, 2), dtype=np.intp)
        hashes, sketches, contrasts = (np.concatenate(parts) for parts in zip(*descriptions, strict=True))
        structured = np.flatnonzero(contrasts >= MIN_CONTRAST)
        if len(structured) < 2:
            return np.empty((0, 2), dtype=np.intp)
        whole = len(structured) == len(thumbnails)
        search = _Search(thumbnails if whole else thumbnails[structured], hashes[structured], sketches[structured])
        pairs, total = [], 0
        for block in pool.map(search, range(0, len(structured), _BLOCK)):
            pairs.append(block)
            total += len(block)
            if total > MAX_PAIRS:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DataError(
                    f"{len(thumbnails)} images: expected at most {MAX_PAIRS} pairs of near-duplicates, got more. Most "
                    "of these images are copies of each other: leave the copies out."
                )
    return structured[np.concatenate(pairs)]


def join_groups(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Merge groups that a pair of indices connects (union-find); return the group of each item.

    Of merged groups the name that sorts first is kept.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for i, j in pairs:
        first, second = sorted((root(groups[i]), root(groups[j])))
        parent[second] = first
    return [root(group) for group in groups]


def _describe(
    pictures: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return hash, sketch and contrast of thumbnails, ``[n]``, ``[n, 65]`` and ``[n]``.

    The sketch of a thumbnail x, taken less its mean and at unit length, holds its 64 lowest DCT coefficients and the
    length of what remains. By Cauchy and Schwarz the product of two sketches is at least the correlation.
    """
    frequency = np.arange(_HASH_SIDE)[:, None]
    position = np.arange(THUMBNAIL)[None, :]
    basis = np.cos(np.pi * (2 * position + 1) * frequency / (2 * THUMBNAIL))
    basis[0] /= np.sqrt(2)
    coefficients = np.einsum("uh,nhw,vw->nuv", basis, pictures, basis).reshape(len(pictures), -1)
    # The first coefficient is the mean brightness: as large as all others together, it would say nothing.
    median = np.median(coefficients[:, 1:], axis=1, keepdims=True)
    hashes = np.packbits(coefficients > median, axis=1).view(np.uint64)[:, 0]

    centred = pictures - pictures.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    energy = np.einsum("nhw,nhw->n", centred, centred)
    low = coefficients * (2 / THUMBNAIL)  # in an orthonormal basis
    low[:, 0] = 0
    rest = np.sqrt(np.maximum(energy - (low**2).sum(1), 0))
    sketches = np.hstack([low, rest[:, None]]) / np.sqrt(np.maximum(energy, 1e-12))[:, None]
    return hashes, sketches.astype(np.float32), pictures.std(axis=(1, 2))


class _Search:
    """Tiles of a comparison of every picture with every later one; hashes and sketches come from :func:`_describe`."""

    def __init__(
        self,
        thumbnails: npt.NDArray[np.float32],
        hashes: npt.NDArray[np.uint64],
        sketches: npt.NDArray[np.float32],
    ) -> None:
        self._thumbnails, self._hashes, self._sketches = thumbnails, hashes, sketches

    def __call__(self, start: int) -> Pairs:
        """Return the near-duplicates of a block of rows among all later pictures, ``[m, 2]`` in order."""
        columns = range(start, len(self._hashes), _COLUMNS)
        pairs: Pairs = np.concatenate([self._tile(start, column) for column in columns])
        ordered: Pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        return ordered

    def _tile(self, row: int, column: int) -> Pairs:
        rows, columns = slice(row, row + _BLOCK), slice(column, column + _COLUMNS)
        close = np.bitwise_count(self._hashes[rows, None] ^ self._hashes[None, columns]) <= MAX_HAMMING
        # Where hashes tell little, all bounds of the tile at once are faster than one by one.
        if np.count_nonzero(close) > close.size // 64:
            close &= self._sketches[rows] @ self._sketches[columns].T >= MIN_CORRELATION - _SLACK
        if not close.any():
            return np.empty((0, 2), dtype=np.intp)
        first, second = np.divmod(np.flatnonzero(close), close.shape[1])  # ten times as fast as nonzero in two axes
        pairs = np.stack([first + row, second + column], axis=1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        bound = np.einsum("md,md->m", self._sketches[pairs[:, 0]], self._sketches[pairs[:, 1]])
        return self._correlated(pairs[bound >= MIN_CORRELATION - _SLACK])

    def _correlated(self, pairs: Pairs) -> Pairs:
        """Return the pairs of a tile whose thumbnails correlate."""
        first, first_at = np.unique(pairs[:, 0], return_inverse=True)
        second, second_at = np.unique(pairs[:, 1], return_inverse=True)
        left, right = _standardised(self._thumbnails[first]), _standardised(self._thumbnails[second])
        if 40 * len(pairs) > len(first) * len(second):
            correlation = (left @ right.T)[first_at, second_at]
        else:
            correlation = np.einsum("md,md->m", left[first_at], right[second_at])
        # What rounding could put on either side is computed in double precision: no shape of a tile decides it.
        for index in np.flatnonzero(np.abs(correlation - MIN_CORRELATION) < _ROUNDING):
            ends = _standardised(self._thumbnails[pairs[index]].astype(np.float64))
            correlation[index] = 1 if ends[0] @ ends[1] >= MIN_CORRELATION else 0
        correlated: Pairs = pairs[correlation >= MIN_CORRELATION]
        return correlated


def _standardised(pictures: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return thumbnails less their mean and at unit length, ``[m, 1024]``."""
    centred = (pictures - pictures.mean(axis=(1, 2), keepdims=True)).reshape(len(pictures), THUMBNAIL**2)
    standardised: npt.NDArray[Any] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return standardised
