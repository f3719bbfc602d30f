"""Masked borders: compared with a loop over the pixels, on images of any size, on slices and on voxels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from data.test_marks_on_volumes import OneVolume, volume
from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import border_width, mask_border
from medmllm_plugins.data.loading.volume_view import View, mask_border_of_volume
from medmllm_plugins.data.readers.slices import slice_images


def loop(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Mirror the inside at its outermost row and column, pixel by pixel; the inside must be wider than the border."""
    masked = np.empty_like(pixels)
    height, width = pixels.shape[:2]

    def source(position: int, side: int) -> int:
        first, last = border_width(side), side - 1 - border_width(side)
        return 2 * first - position if position < first else 2 * last - position if position > last else position

    for row in range(height):
        for column in range(width):
            masked[row, column] = pixels[source(row, height), source(column, width)]
    return masked


@pytest.mark.parametrize("size", [(64, 64), (50, 33), (8, 200), (9, 5)])
def test_the_border_mirrors_what_lies_inside(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    masked = mask_border(image)
    assert masked.mode == "RGB" and masked.size == image.size and np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(np.asarray(masked), loop(pixels))
    top, left = (border_width(side) for side in size)
    other = generator.integers(0, 256, pixels.shape, dtype=np.uint8)
    other[top:-top, left:-left] = pixels[top:-top, left:-left]
    assert mask_border(Image.fromarray(other)).tobytes() == masked.tobytes()  # nothing of the border is left


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 7), (3, 4)])
def test_images_that_are_all_border_keep_their_size(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    masked = np.asarray(mask_border(Image.fromarray(pixels)))
    assert masked.shape == pixels.shape
    if size[0] <= 2:
        assert (masked == masked[:1]).all() and masked[0, 0] in pixels[size[0] // 2]


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_every_slice_is_masked(plane: str) -> None:
    data = OneVolume(volume("HU"))
    document = Document("d", "d", "a", "g", "test")
    pictures = View(slices=4, montage=False, plane=plane).pictures(data, document, mask_border)  # type: ignore[arg-type]
    plain = slice_images(data.shown, 4, plane=plane)
    assert [np.asarray(picture).tolist() for picture in pictures] == [loop(np.asarray(item)).tolist() for item in plain]
    (whole,) = View(slices=4, plane=plane).pictures(data, document, mask_border)  # type: ignore[arg-type]
    width, height = plain[0].size
    assert whole.crop((width, 0, 2 * width, height)).tobytes() == pictures[1].tobytes()


def test_voxels_are_masked_slice_by_slice() -> None:
    shown = volume("any")
    before = shown.voxels.copy()
    masked = mask_border_of_volume(shown)
    assert (shown.voxels == before).all() and (masked.unit, masked.spacing) == (shown.unit, shown.spacing)
    for slice_before, slice_after in zip(before, masked.voxels, strict=True):
        assert np.array_equal(slice_after, loop(slice_before))
