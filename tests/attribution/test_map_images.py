"""Maps as pictures: one value has one colour wherever it stands."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medmllm_plugins.attribution import map_images
from medmllm_plugins.attribution.cells import FloatArray
from medmllm_plugins.attribution.map_images import colour_map, colour_range, overlay

SIDE = 64


def slices() -> FloatArray:
    """A volume of noise and one bright block, whose projection has another scale than the whole."""
    values: FloatArray = np.random.default_rng(0).normal(size=(6, SIDE, SIDE)) * 0.1
    values[5, 20:30, 20:30] = 3
    return values


def projected(painted: FloatArray) -> Image.Image:
    """The map over the brightest of black slices: the last column of the strip, its lower half."""
    whole = overlay([Image.new("RGB", (SIDE, SIDE))] * len(painted), painted)
    height = (whole.height - map_images.MARGIN) // 2
    width = whole.width // (len(painted) + 1)
    return whole.crop((whole.width - width, height, whole.width, 2 * height)).resize((SIDE, SIDE), Image.Resampling.BOX)


def test_the_projection_has_the_colours_of_its_slices() -> None:
    painted = slices()
    largest = np.take_along_axis(painted, np.abs(painted).argmax(0)[None], axis=0)
    assert colour_range(largest)[1] > 2 * colour_range(painted)[1]
    wanted = Image.new("RGBA", (SIDE, SIDE), "black")
    wanted.alpha_composite(colour_map(largest, colour_range(painted))[0])
    np.testing.assert_array_equal(np.asarray(projected(painted)), np.asarray(wanted.convert("RGB")))
    # Where a value is the largest behind its pixel, the slice has the very colour.
    own = np.asarray(colour_map(painted)[5])
    np.testing.assert_array_equal(
        np.asarray(colour_map(largest, colour_range(painted))[0])[20:30, 20:30], own[20:30, 20:30]
    )
