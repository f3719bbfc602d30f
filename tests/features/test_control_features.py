"""Control features by region: values by hand, small marks in large images, small images, several pictures, volumes."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.results.probe_records import BORDER, CENTRE, CORNERS, PIXELS

WIDTHS = {PIXELS: 3072, BORDER: 560, CORNERS: 1280, CENTRE: 1280}


def picture_of(values: npt.ArrayLike) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def loop(picture: npt.NDArray[np.uint8], rows: range, columns: range) -> list[float]:
    """Return the five values of one cell, pixel by pixel."""
    cell = picture[rows.start : rows.stop, columns.start : columns.stop].reshape(-1, 3)
    grey = (cell @ [0.299, 0.587, 0.114]).round()
    return [*cell.mean(0), grey.min(), grey.max()]


def test_cells_are_those_of_a_loop_over_the_regions() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    features = control_features(picture_of(picture))
    assert {layer: values.shape[0] for layer, values in features.items()} == WIDTHS
    top = [loop(picture, range(r, r + 4), range(c, c + 8)) for r in (0, 4) for c in range(0, 128, 8)]
    right = [loop(picture, range(r, r + 4), range(c, c + 8)) for r in range(8, 56, 4) for c in (112, 120)]
    lower_left = [loop(picture, range(r, r + 2), range(c, c + 4)) for r in range(48, 64, 2) for c in range(0, 32, 4)]
    centre = [loop(picture, range(r, r + 2), range(c, c + 4)) for r in range(16, 48, 2) for c in range(32, 96, 4)]
    border, corners = features[BORDER].reshape(-1, 5), features[CORNERS].reshape(4, -1, 5)
    for cells, expected in ((border[:32], top), (border[-24:], right), (corners[2], lower_left)):
        assert np.allclose(cells, expected, atol=1)
    assert np.allclose(features[CENTRE].reshape(-1, 5), centre, atol=1)


def test_a_small_mark_in_a_large_image_is_not_averaged_away() -> None:
    grey = np.full((2000, 3000, 3), 100)
    plain = control_features(picture_of(grey))
    grey[10:14, 2950:2954] = 255
    marked = control_features(picture_of(grey))
    for layer in (BORDER, CORNERS):
        change = np.abs(marked[layer].astype(float) - plain[layer]).reshape(-1, 5)
        assert change[:, 4].max() == 155 and (change.max(1) > 0).sum() == 1
    assert np.array_equal(marked[CENTRE], plain[CENTRE])
    assert np.abs(marked[PIXELS].astype(float) - plain[PIXELS]).max() < 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (28, 28), (7, 400)])
def test_images_smaller_than_the_cells_have_as_many_values(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    features = control_features(picture_of(picture))
    assert {layer: values.shape[0] for layer, values in features.items()} == WIDTHS
    corner = features[CORNERS].reshape(4, -1, 5)
    assert np.allclose(corner[0, 0, :3], picture[0, 0]) or max(size) > 32


def test_several_pictures_and_the_slices_of_a_volume_give_means_and_extremes() -> None:
    pictures = [picture_of(np.full((40, 40, 3), value)) for value in (10, 40, 100)]
    together = control_features(pictures)[BORDER].reshape(-1, 5)
    assert np.allclose(together, [50, 50, 50, 10, 100])
    voxels = np.zeros((20, 64, 64), dtype=np.float32)
    voxels[:, 30:34, 30:34] = 100
    plain = Volume(voxels, (1.0, 1.0, 1.0), "SPL", "any")
    voxels = voxels.copy()
    voxels[:2, :4, :4] = 100
    features, marked = control_features(plain), control_features(Volume(voxels, (1.0, 1.0, 1.0), "SPL", "any"))
    assert features[PIXELS].shape == (4096,) and features[CORNERS].shape == (1280,)
    assert np.abs(marked[CORNERS].astype(float) - features[CORNERS]).reshape(-1, 5)[:, 4].max() == 255
    assert np.array_equal(marked[CENTRE], features[CENTRE])


def test_regions_cost_little_beside_reading_an_image() -> None:
    picture = picture_of(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3)))
    control_features(picture)
    began = time.thread_time()
    for _ in range(5):
        control_features(picture)
    assert (time.thread_time() - began) / 5 < 0.25  # measured: 0.01 s
