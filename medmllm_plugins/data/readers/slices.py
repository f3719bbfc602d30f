"""Show volumes to models that take images: evenly spaced slices as a radiologist sees them, and montages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.readers.intensity_windows import to_grey, window_bounds
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import DataError, shown

# By plane: the letters of the axis the slices follow, and the directions in which the picture's rows and columns grow.
_PLANES = {"axial": ("SI", "P", "L"), "coronal": ("AP", "I", "L"), "sagittal": ("LR", "I", "P")}
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}

MAX_SIDE = 16_384
"""Longest side of a picture in pixels; spacings that differ a thousandfold would take too much memory."""


def select_slices(volume: Volume, n: int, *, plane: str = "axial") -> list[int]:
    """Choose evenly spaced slices: those in the middle of ``n`` equal parts of the volume.

    A single slice is shown in its own plane. The planes are ``"axial"``, ``"coronal"`` and ``"sagittal"``.

    Returns:
        Indices along the plane's axis, strictly increasing, ``min(n, size of that axis)`` many; in a volume of
        orientation ``"RAS"`` axial slices run from the feet to the head.

    Raises:
        DataError: ``n`` is below 1 or there is no such plane.
    """
    if n < 1:
        raise DataError(f"Expected at least 1 slice, got {n}.")
    size = volume.voxels.shape[_display(volume, plane)[0]]
    count = min(n, size)
    return [(2 * part + 1) * size // (2 * count) for part in range(count)]


def slice_images(
    volume: Volume, n: int, window: str | tuple[float, float] | None = None, plane: str = "axial"
) -> list[Image.Image]:
    """Show evenly spaced slices as pictures of one size in mode ``RGB``, in the order of :func:`select_slices`.

    The pictures follow the radiological convention, whatever the volume's orientation: axial slices as seen from the
    feet, anterior up and the patient's right on the picture's left; coronal slices with the head up and the patient's
    right on the left; sagittal slices with the head up and anterior on the left. Where the voxels are not square in
    the plane, the axis with the larger spacing is enlarged (bilinear), so that pixels are square and none is lost.

    All slices share one ``window``, see :func:`medmllm_plugins.data.readers.intensity_windows.window_bounds`.

    Raises:
        DataError: see :func:`select_slices` and ``window_bounds``; or a side would be longer than :data:`MAX_SIDE`.
    """
    chosen = select_slices(volume, n, plane=plane)
    axis, rows, columns, steps = _display(volume, plane)
    low, high = window_bounds(volume.voxels, window, volume.unit)
    sides = [volume.voxels.shape[side] * volume.spacing[side] for side in (columns, rows)]
    finest = min(volume.spacing[rows], volume.spacing[columns])
    size = (max(1, round(sides[0] / finest)), max(1, round(sides[1] / finest)))
    if max(size) > MAX_SIDE:
        raise DataError(
            f"Expected slices of at most {MAX_SIDE} pixels a side, got {size[0]} x {size[1]} once their pixels are "
            f"square; resample the volume (spacing {volume.spacing} mm)."
        )
    pictures = []
    for index in chosen:
        values: npt.NDArray[np.float32] = volume.voxels.take([index], axis=axis).squeeze(axis)
        values = values if rows < columns else values.T
        image = Image.fromarray(np.ascontiguousarray(to_grey(values[:: steps[0], :: steps[1]], low, high)))
        resized = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        pictures.append(resized.convert("RGB"))
    return pictures


def _display(volume: Volume, plane: str) -> tuple[int, int, int, tuple[int, int]]:
    """Return the axes of slices, rows and columns of a plane, and steps along the latter two: 1 or -1."""
    if plane not in _PLANES:
        raise DataError(f"Expected a plane among {sorted(_PLANES)}, got {shown(plane)}.")
    letters = volume.orientation[::-1]  # by axis of the array
    if volume.voxels.shape[0] == 1:
        plane = next(name for name, (through, _, _) in _PLANES.items() if letters[0] in through)
    through, row, column = _PLANES[plane]
    rows, columns = (next(axis for axis in range(3) if letters[axis] in (end, _OPPOSITE[end])) for end in (row, column))
    steps = (1 if letters[rows] == row else -1, 1 if letters[columns] == column else -1)
    return next(axis for axis in range(3) if letters[axis] in through), rows, columns, steps
