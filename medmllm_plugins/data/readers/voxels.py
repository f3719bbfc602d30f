"""Read the voxels of a checked header as float32, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers.byte_sources import ByteSource, open_source
from medmllm_plugins.data.readers.volume_headers import VolumeHeader, check_all_finite
from medmllm_plugins.utils.regular_files import open_regular

_BLOCK: Final = 48 * 1024**2
"""Bytes of a block: above the largest size for which the C library keeps freed memory."""


def read_voxels(header: VolumeHeader, axes: Sequence[int] = (0, 1, 2), flips: Sequence[int] = ()) -> np.ndarray:
    """Read a volume's voxels in another order of axes.

    Compressed data are decompressed once and their length and checksum compared before they are converted. Blocks are
    freed as they become float32, so that the peak is the larger of the two and one block.

    ``axes`` are, for each axis of the result, the axis of :attr:`VolumeHeader.shape` it is; ``flips`` are those of the
    result that run the other way.

    Returns:
        ``[D, H, W]`` float32, finite, contiguous.

    Raises:
        DataError: the data are damaged, shorter or longer than the header states, or not finite.
    """
    voxels: npt.NDArray[np.float32] | None = None
    bad = 0
    first = 0
    for block in _blocks(header):
        if voxels is None:
            voxels = np.empty([header.shape[axis] for axis in axes], np.float32)
            # The same memory, in the order of the file.
            target = np.flip(voxels, tuple(flips)).transpose([list(axes).index(axis) for axis in range(3)])
            target = target.transpose(2, 1, 0) if header.reversed_axes else target
        bad += _convert(block, target[first : first + len(block)], header.scaling)
        first += len(block)
    assert voxels is not None
    check_all_finite(header.path, bad, voxels.size)
    return voxels


def _convert(block: npt.NDArray[Any], target: npt.NDArray[np.float32], scaling: tuple[float, float]) -> int:
    """Write a block as real values; return the number of values that are not finite."""
    slope, intercept = scaling
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted
        if scaling == (1.0, 0.0):
            target[...] = block
        else:
            for slab, values in zip(target, block, strict=True):
                slab[...] = np.multiply(values, slope, dtype=np.float64) + intercept
    if scaling == (1.0, 0.0) and block.dtype.kind in "iub":
        return 0
    return sum(int(slab.size - np.count_nonzero(np.isfinite(slab))) for slab in target)


def _blocks(header: VolumeHeader) -> Iterator[npt.NDArray[Any]]:
    """Yield the voxels as stored, some slabs of the slowest axis at a time."""
    shape = header.shape[::-1] if header.reversed_axes else header.shape
    slab = math.prod(shape[1:]) * header.dtype.itemsize
    step = max(1, _BLOCK // slab)
    counts = [min(step, shape[0] - first) for first in range(0, shape[0], step)]
    with open_regular(header.data.path) as opened:
        opened.seek(header.data.offset)
        source = open_source(header.data.path, opened, header.data.packing, header.dtype)
        source.skip(header.data.skip)
        if header.data.packing == "raw":
            # The length was compared with the header, and there is no checksum to wait for.
            for count in counts:
                yield _block(source, header.dtype, (count, *shape[1:]))
            source.finish()
            return
        blocks = [_block(source, header.dtype, (count, *shape[1:])) for count in counts]
        source.finish()
    blocks.reverse()
    while blocks:
        yield blocks.pop()


def _block(source: ByteSource, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    # Bytes first: an array of bool must not hold others than 0 and 1.
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    source.fill(buffer.data)
    return buffer.view("u1" if dtype.kind == "b" else dtype).reshape(shape)
