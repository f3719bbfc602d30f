"""Near-duplicate pictures, and groups of what must stay on one side of a split.

Two pictures are near-duplicates when both hold: their 64-bit perceptual hashes (DCT hash, C. Zauner, "Implementation
and benchmarking of perceptual image hash functions", 2010) differ in at most :data:`MAX_HAMMING` bits, and their
thumbnails correlate with at least :data:`MIN_CORRELATION`. The hash alone joins most CT slices into one group, as all
show an ellipse on black; the correlation alone chains ultrasound images of different women. On BUSI the number of
pairs is the same for hash distances 6 to 9, which is where the limit stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL = 32
"""Side of a thumbnail, in pixels."""
MAX_HAMMING = 8
"""Largest distance of two near-duplicates' hashes, in bits of 64."""
MIN_CORRELATION = 0.95
"""Smallest Pearson correlation of two near-duplicates' thumbnails."""
MIN_CONTRAST = 1.0
"""Smallest standard deviation of a thumbnail, in grey levels of 255, that counts as structure."""

_HASH_SIDE = 8
_BLOCK = 1024


def thumbnail(image: Image.Image) -> npt.NDArray[np.float32]:
    """Shrink a picture to what the comparison looks at.

    Returns:
        ``[32, 32]`` float32 grey levels, 0 to 255, each the mean of its part of the picture.
    """
    grey = image.convert("F") if image.mode == "L" else image.convert("L").convert("F")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)


def near_duplicates(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Find the pairs of near-duplicates among all pictures; see the module for what counts as one.

    Pictures without structure (contrast below :data:`MIN_CONTRAST`) have no meaningful hash and are in no pair.

    Args:
        thumbnails: ``[n, 32, 32]`` grey levels, see :func:`thumbnail`.

    Returns:
        ``[m, 2]`` indices ``i < j``, in lexicographic order.
    """
    structured = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= MIN_CONTRAST)
    if len(structured) < 2:
        return np.empty((0, 2), dtype=np.intp)
    pictures = thumbnails[structured].astype(np.float32)
    centred = (pictures - pictures.mean(axis=(1, 2), keepdims=True)).reshape(len(pictures), -1)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    signs = _hash_signs(pictures)
    found = []
    for start in range(0, len(pictures), _BLOCK):
        block = slice(start, start + _BLOCK)
        # A product of +-1 vectors is (bits that agree) - (bits that differ).
        close = _HASH_SIDE**2 - signs[block] @ signs.T <= 2 * MAX_HAMMING
        close &= centred[block] @ centred.T >= MIN_CORRELATION
        rows, columns = np.nonzero(close)
        pairs = np.stack([rows + start, columns], axis=1)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return structured[np.concatenate(found)]


def join_groups(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Merge groups that a pair connects (union-find).

    Args:
        groups: the group of each of n items.
        pairs: indices of two items whose groups become one.

    Returns:
        The group of each item after merging: of merged groups, the name that sorts first.
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


def _hash_signs(pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Perceptual hash: which of the 64 lowest DCT-II coefficients exceed their median; ``[n, 64]`` of +1 and -1."""
    frequency = np.arange(_HASH_SIDE)[:, None]
    position = np.arange(THUMBNAIL)[None, :]
    basis = np.cos(np.pi * (2 * position + 1) * frequency / (2 * THUMBNAIL))
    basis[0] /= np.sqrt(2)
    coefficients = np.einsum("uh,nhw,vw->nuv", basis, pictures, basis).reshape(len(pictures), -1)
    # The first coefficient is the mean brightness: as large as all others together, it would say nothing.
    median = np.median(coefficients[:, 1:], axis=1, keepdims=True)
    return np.where(coefficients > median, 1, -1).astype(np.float32)
