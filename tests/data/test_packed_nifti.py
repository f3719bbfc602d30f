"""Packed NIfTI files are read as SimpleITK reads the unpacked ones, for every type of number, scaled or not."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.errors import DataError

TYPES = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64)


def write(path: Path, kind: type, scaling: tuple[float, float] | None = None) -> bytes:
    generator = np.random.default_rng(0)
    voxels = (
        generator.uniform(0, 120, (5, 6, 7)) if kind is not np.float64 else generator.normal(size=(5, 6, 7))
    ).astype(kind)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((-3.0, 5.0, 11.0))
    image.SetDirection((0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path))
    content = bytearray(path.read_bytes())
    if scaling is not None:
        struct.pack_into("<2f", content, 112, *scaling)
        path.write_bytes(bytes(content))
    return bytes(content)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scaling", [None, (0.0, 7.0), (1.0, -1024.0), (0.25, 3.0), (-2.0, 0.0)])
def test_values_and_places_are_those_of_the_unpacked_file(
    tmp_path: Path, kind: type, scaling: tuple[float, float] | None
) -> None:
    content = write(tmp_path / "scan.nii", kind, scaling)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content))
    plain, packed = read_volume(tmp_path / "scan.nii"), read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(packed.voxels, plain.voxels, rtol=1e-6, atol=1e-6)
    assert packed.spacing == pytest.approx(plain.spacing) and packed.orientation == plain.orientation == "RAS"


def test_packed_in_several_parts(tmp_path: Path) -> None:
    content = write(tmp_path / "scan.nii", np.int16)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]) + bytes(64))
    assert np.array_equal(read_volume(tmp_path / "scan.nii.gz").voxels, read_volume(tmp_path / "scan.nii").voxels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[2, 3, 4] = value
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "scan.nii.gz"))
    with pytest.raises(DataError, match=r"scan\.nii\.gz: expected finite"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("where", [-1, -6, 400])
def test_one_flipped_bit_is_found(tmp_path: Path, where: int) -> None:
    content = write(tmp_path / "scan.nii", np.int16)
    packed = bytearray(gzip.compress(content))
    packed[where] ^= 4
    (tmp_path / "scan.nii.gz").write_bytes(bytes(packed))
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1.0, -1.0), repeat=3)))
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_every_way_to_stand(tmp_path: Path, axes: tuple[int, ...], signs: tuple[float, ...], orientation: str) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 2.0))
    direction = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[target, axis] = sign
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])  # oblique
    image.SetDirection((turn @ direction).ravel().tolist())
    for ending in (".nii", ".nii.gz"):
        sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    plain = read_volume(tmp_path / "scan.nii", orientation=orientation)
    packed = read_volume(tmp_path / "scan.nii.gz", orientation=orientation)
    assert np.array_equal(packed.voxels, plain.voxels) and packed.orientation == plain.orientation == orientation
    assert packed.spacing == pytest.approx(plain.spacing, rel=1e-5)
