"""Volumes whose voxel values tell where they are, read back from every format and orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medmllm_plugins.data.readers.volumes import ORIENTATIONS, read_volume, volume_facts
from medmllm_plugins.errors import DataError

SPACING = (0.7, 0.8, 2.5)  # x, y, z in mm, as SimpleITK counts
ORIGIN = (-10.0, -20.0, 100.0)


def encode(point: np.ndarray) -> np.ndarray:
    """A value for a place in the patient (LPS, mm) that differs between all places."""
    return point[..., 0] + 100 * point[..., 1] + 10_000 * point[..., 2]


def image(direction: np.ndarray | None = None, size: tuple[int, int, int] = (5, 4, 3)) -> sitk.Image:
    """An image whose voxels hold their own place in the patient."""
    matrix = np.eye(3) if direction is None else direction
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)  # [x, y, z, 3]
    points = np.array(ORIGIN) + (index * SPACING) @ matrix.T
    made = sitk.GetImageFromArray(encode(points).transpose(2, 1, 0).astype(np.float32))
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    made.SetDirection(matrix.ravel().tolist())
    return made


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_ras_grows_to_the_right_the_front_and_the_head(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image(), str(path))
    volume = read_volume(path)
    assert volume.voxels.shape == (3, 4, 5) and volume.voxels.dtype == np.float32
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7)) and volume.orientation == "RAS"
    # LPS grows to the left and back, so both are turned: the first voxel is the leftmost, hindmost, lowest one.
    far = np.array([ORIGIN[0] + 4 * 0.7, ORIGIN[1] + 3 * 0.8, ORIGIN[2]])
    assert volume.voxels[0, 0, 0] == pytest.approx(encode(far), rel=1e-6)
    step = volume.voxels[1, 0, 0] - volume.voxels[0, 0, 0], volume.voxels[0, 1, 0] - volume.voxels[0, 0, 0]
    assert step == pytest.approx((2.5 * 10_000, -0.8 * 100), rel=1e-2)


@settings(max_examples=30)
@given(st.sampled_from(sorted(ORIENTATIONS)))
def test_every_orientation_shows_the_same_patient(tmp_path_factory: pytest.TempPathFactory, orientation: str) -> None:
    path = tmp_path_factory.mktemp("o") / "scan.nii"
    sitk.WriteImage(image(), str(path))
    volume = read_volume(path, orientation=orientation)
    reference = read_volume(path)
    assert volume.orientation == orientation
    assert np.sort(volume.voxels.ravel()) == pytest.approx(np.sort(reference.voxels.ravel()))
    axis = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    sizes, spacings = (5, 4, 3), SPACING
    order = [axis[letter] for letter in orientation]
    assert volume.voxels.shape == tuple(sizes[index] for index in order[::-1])
    assert volume.spacing == pytest.approx(tuple(spacings[index] for index in order[::-1]))
    # Growing towards S raises the value by z, towards R lowers it by x (LPS), towards A lowers it by y.
    weight = {"R": -0.7, "L": 0.7, "A": -80.0, "P": 80.0, "S": 25_000.0, "I": -25_000.0}
    for position, letter in enumerate(orientation):
        step = np.diff(volume.voxels.astype(np.float64), axis=2 - position).mean()
        assert step == pytest.approx(weight[letter], rel=1e-2)


def test_an_oblique_scan_keeps_its_voxels_and_gets_the_nearest_axes(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    path = tmp_path / "oblique.nii.gz"
    sitk.WriteImage(image(turned), str(path))
    volume = read_volume(path)
    assert volume.voxels.shape == (3, 4, 5) and volume.spacing == pytest.approx((2.5, 0.8, 0.7), rel=1e-5)
    stored = sitk.GetArrayFromImage(image(turned))
    assert np.array_equal(volume.voxels, stored[:, ::-1, ::-1])


def test_signed_and_unsigned_sixteen_bit(tmp_path: Path) -> None:
    for dtype, values in ((np.int16, (-1024, 3071)), (np.uint16, (0, 65535))):
        array = np.array(values * 12, dtype=dtype).reshape(2, 3, 4)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "scan.nrrd"))
        volume = read_volume(tmp_path / "scan.nrrd", orientation="LPS")
        assert np.array_equal(volume.voxels, array.astype(np.float32))


def test_numpy_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    np.save(tmp_path / "scan.npy", array)
    volume = read_volume(tmp_path / "scan.npy")
    assert np.array_equal(volume.voxels, array) and volume.spacing == (1.0, 1.0, 1.0)


def test_facts_come_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(image(), str(path))
    facts = volume_facts(path)
    assert tuple(facts.shape) == (3, 4, 5) and facts.spacing == pytest.approx((2.5, 0.8, 0.7))


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] | None = None) -> Path:
    made = sitk.GetImageFromArray(array)
    if spacing is not None:
        made.SetSpacing(spacing)
    sitk.WriteImage(made, str(path))
    return path


def test_what_is_no_volume_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    good = write(tmp_path / "good.nii", np.zeros((3, 4, 5), np.float32))
    holes = np.zeros((3, 4, 5), np.float32)
    holes[0, 0, :2] = np.nan, np.inf
    (tmp_path / "empty.nii").touch()
    (tmp_path / "text.nii").write_text("no volume at all")
    (tmp_path / "cut.nii").write_bytes(good.read_bytes()[:-40])
    cases = {
        tmp_path / "missing.nii": "missing",
        tmp_path / "empty.nii": "empty",
        tmp_path / "text.nii": "text",
        tmp_path / "cut.nii": "cut",
        write(tmp_path / "holes.nii", holes): "2",
        write(tmp_path / "four.nii", np.zeros((2, 3, 4, 5), np.float32)): "four",
        write(tmp_path / "wide.nrrd", np.zeros((3, 4, 5), np.float32), (1.0, 1.0, 500.0)): "500",
    }
    for path, says in cases.items():
        with pytest.raises(DataError, match=says) as caught:
            read_volume(path)
        assert path.name in str(caught.value)


@settings(max_examples=40)
@given(st.integers(0, 400), st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_a_truncated_file_is_never_read_as_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int, ending: str
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"scan{ending}"
    write(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    content = path.read_bytes()
    path.write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(DataError, match="scan"):
        read_volume(path)
