"""Windows, slices and montages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.data.readers.intensity_windows import WINDOWS, Unit, parse_window, to_grey, window_bounds
from medmllm_plugins.data.readers.picture_options import montage
from medmllm_plugins.data.readers.slices import select_slices, slice_images
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import DataError


def volume(shape: tuple[int, int, int] = (8, 4, 6), spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Volume:
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), spacing, "RAS", "any")


def apply_window(voxels: np.ndarray, window: str | tuple[float, float] | None, unit: Unit) -> np.ndarray:
    return to_grey(voxels, *window_bounds(voxels, window, unit))


def test_the_lung_window_by_hand() -> None:
    values = np.array([-2000.0, -1350.0, -600.0, 150.0, 3000.0])
    assert apply_window(values, "lung", "HU").tolist() == [0, 0, 128, 255, 255]
    assert apply_window(values, "-600/1500", "HU").tolist() == [0, 0, 128, 255, 255]
    assert apply_window(np.array([-1000.0, 0.0, 1000.0]), None, "HU").tolist() == [0, 128, 255]


@pytest.mark.parametrize("text", ["lungs", "", "1", "1/0", "1/-5", "a/b", "nan/1", "1/inf", "1/2/3"])
def test_no_such_window(text: str) -> None:
    with pytest.raises(DataError):
        parse_window(text)


def test_a_named_window_needs_hounsfield_units() -> None:
    for name in WINDOWS:
        with pytest.raises(DataError, match="Hounsfield"):
            apply_window(np.zeros(3), name, "any")


@given(st.lists(st.floats(-4000, 4000), min_size=2, max_size=20), st.floats(-1000, 1000), st.floats(1, 4000))
def test_windows_keep_the_order(values: list[float], centre: float, width: float) -> None:
    grey = apply_window(np.sort(values), (centre, width), "any")
    assert (np.diff(grey.astype(int)) >= 0).all()


@given(st.integers(1, 40), st.integers(1, 12))
def test_slices_are_evenly_spaced(depth: int, n: int) -> None:
    chosen = select_slices(volume((depth, 2, 2)), n)
    assert len(chosen) == min(n, depth) and chosen == sorted(set(chosen))
    assert chosen[0] >= 0 and chosen[-1] < depth
    gaps = np.diff([-chosen[0] - 1, *chosen, 2 * depth - 1 - chosen[-1]])  # mirrored at both ends
    assert gaps.max() - gaps.min() <= 2


def test_slices_by_hand() -> None:
    assert select_slices(volume(), 4) == [1, 3, 5, 7]
    assert select_slices(volume(), 1, plane="sagittal") == [3]


def test_axial_slices_follow_the_radiological_convention() -> None:
    array = np.zeros((3, 4, 6), np.float32)
    array[:, 3, 5] = 1.0  # in RAS the rightmost, foremost voxel
    (picture,) = slice_images(Volume(array, (1.0, 1.0, 1.0), "RAS", "any"), 1, window=(0.5, 1.0))
    assert picture.size == (6, 4)
    assert np.asarray(picture)[0, 0].tolist() == [255, 255, 255]  # front up, the patient's right on the left
    assert np.asarray(picture).sum() == 3 * 255


def test_pixels_become_square() -> None:
    sizes = {plane: slice_images(volume(), 1, plane=plane)[0].size for plane in ("axial", "coronal", "sagittal")}
    assert sizes == {"axial": (6, 4), "coronal": (6, 16), "sagittal": (4, 16)}


def test_montage_is_row_by_row() -> None:
    from PIL import Image

    tiles = [Image.new("RGB", (2, 3), (grey, grey, grey)) for grey in (50, 100, 150, 200, 250)]
    whole = np.asarray(montage(tiles))
    assert whole.shape == (6, 6, 3)
    assert [int(whole[3 * (k // 3), 2 * (k % 3), 0]) for k in range(6)] == [50, 100, 150, 200, 250, 0]
    with pytest.raises(DataError):
        montage([])
