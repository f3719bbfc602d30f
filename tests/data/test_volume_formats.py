"""Every good volume file is read as SimpleITK reads it: voxels, spacing and orientation."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from support.volume_files import by_simpleitk, scan, write_metaimage, write_nrrd

from medmllm_plugins.data.readers.volumes import read_volume, volume_facts
from medmllm_plugins.errors import DataError

TYPES = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)
VOXELS = np.random.default_rng(0).integers(-2000, 2000, (4, 5, 6)).astype("<i2")


def compare(path: Path, orientation: str = "RAS") -> None:
    wanted, volume = by_simpleitk(path, orientation), read_volume(path, orientation=orientation)
    np.testing.assert_array_equal(volume.voxels, wanted.voxels)
    assert volume.voxels.flags.c_contiguous
    assert volume.spacing == pytest.approx(wanted.spacing, rel=1e-6)
    assert volume.orientation == wanted.orientation
    facts = volume_facts(path)
    assert sorted(facts.shape) == sorted(volume.voxels.shape) and len(facts.orientation) == 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_type_in_every_format(tmp_path: Path, dtype: type, ending: str, packed: bool) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(scan(dtype, (0, 0, 1, -1, 0, 0, 0, 1, 0)), str(path), packed)
    compare(path)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_every_way_to_stand_and_to_be_asked_for(tmp_path: Path, ending: str) -> None:
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    path = tmp_path / f"scan{ending}"
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            direction = np.zeros((3, 3))
            direction[axes, range(3)] = signs
            sitk.WriteImage(scan(direction=(turn @ direction).ravel()), str(path))
            compare(path, "RAS")
            compare(path, "SAL")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_two_dimensions(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"flat{ending}"
    sitk.WriteImage(scan(direction=(-1, 0, 0, -1), shape=(5, 6)), str(path))
    compare(path)


@pytest.mark.parametrize("ending", [".nii", ".mha"])
def test_a_fourth_axis_of_one(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"four{ending}"
    sitk.WriteImage(sitk.JoinSeries([scan(direction=(0, 0, 1, -1, 0, 0, 0, 1, 0))]), str(path))
    compare(path)


def nifti(path: Path, *, codes: tuple[int, int] = (1, 0), dtype: str = "<i2", version: int = 1) -> Path:
    """A NIfTI file whose qform and sform state different orientations."""
    turned, plain = np.eye(4), np.diag([1.5, 2.0, 3.0, 1.0])
    turned[:3, :3] = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]) @ np.diag([1.5, 2.0, 3.0])
    plain[:3, :3] = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]) @ plain[:3, :3]
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = kind.header_class(endianness=dtype[0])
    image = kind(VOXELS.T.astype(dtype), None, header)
    image.header.set_data_dtype(np.dtype(dtype))
    image.header.set_qform(plain, codes[0])
    image.header.set_sform(turned, codes[1])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(q, s) for q, s in itertools.product(range(5), repeat=2) if q or s])
def test_qform_and_sform(tmp_path: Path, codes: tuple[int, int]) -> None:
    compare(nifti(tmp_path / "scan.nii", codes=codes))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_versions_and_byte_orders(tmp_path: Path, version: int, order: str, ending: str) -> None:
    path = nifti(tmp_path / f"scan{ending}", dtype=f"{order}i2", version=version)
    content = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
    assert content[:4] == struct.pack(f"{order}i", 348 if version == 1 else 540)
    twin = nifti(tmp_path / "twin.nii")  # SimpleITK does not know NIfTI-2
    compare(twin)
    wanted, volume = read_volume(twin), read_volume(path)
    np.testing.assert_array_equal(volume.voxels, wanted.voxels)
    assert volume.spacing == pytest.approx(wanted.spacing) and volume_facts(path).orientation == "RAS"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "scaling",
    [
        (0.0, 7.0),
        (2.0, -1024.0),
        (0.3, 3.0),
        (-2.0, 0.0),
        (np.nan, np.nan),
        (2.0, np.nan),
        (np.nan, 4.0),
        (np.inf, 1.0),
    ],
)
def test_slopes(tmp_path: Path, dtype: type, scaling: tuple[float, float]) -> None:
    path = tmp_path / "scan.nii"
    sitk.WriteImage(scan(dtype), str(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, *scaling)
    path.write_bytes(content)
    # SimpleITK rounds large whole numbers to float32 before it scales them.
    np.testing.assert_allclose(read_volume(path).voxels, by_simpleitk(path).voxels, rtol=2e-7, atol=1e-4)


@pytest.mark.parametrize("units", ["meter", "micron", "mm", "unknown"])
def test_units_of_length(tmp_path: Path, units: str) -> None:
    factor = {"meter": 0.001, "micron": 1000.0}.get(units, 1.0)
    image = nibabel.Nifti1Image(VOXELS.T, np.diag([factor * 0.5, factor * 0.7, factor * 2, 1]))
    image.header.set_xyzt_units(units)
    nibabel.save(image, tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").spacing == pytest.approx((2, 0.7, 0.5))
    compare(tmp_path / "scan.nii")


def test_a_sign_of_the_third_axis_that_is_not_set(tmp_path: Path) -> None:
    for sign in (0.0, -1.0, 1.0):
        path = nifti(tmp_path / "scan.nii")
        content = bytearray(path.read_bytes())
        struct.pack_into("<f", content, 76, sign)
        path.write_bytes(content)
        compare(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "hex", "ascii"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_encodings_of_nrrd(tmp_path: Path, encoding: str, order: str) -> None:
    compare(write_nrrd(tmp_path / "scan.nrrd", VOXELS.astype(f"{order}i2"), encoding))


def test_bzip2_which_simpleitk_lacks(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", VOXELS, "bzip2")
    np.testing.assert_array_equal(read_volume(path, orientation="LPS").voxels, VOXELS)


@pytest.mark.parametrize("space", ["left-posterior-superior", "LAS", "right-anterior-superior", "RAS"])
def test_spaces(tmp_path: Path, space: str) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", VOXELS)
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", space.encode()))
    compare(path)


@pytest.mark.parametrize(
    ("more", "before"),
    [("byte skip: 5", b"12345"), ("byte skip: -1", b"whatever"), ("line skip: 2", b"a\nb\n"), ("# note", b"")],
)
def test_skipped_bytes_and_lines(tmp_path: Path, more: str, before: bytes) -> None:
    compare(write_nrrd(tmp_path / "scan.nrrd", VOXELS, more=[more], data=before + VOXELS.tobytes()))
    (tmp_path / "other.raw").write_bytes(before + VOXELS.tobytes())
    compare(write_nrrd(tmp_path / "scan.nhdr", VOXELS, more=[more, "data file: other.raw"], data=b""))


@pytest.mark.parametrize("where", [0, 3])
def test_an_axis_of_one_for_the_parts_of_a_voxel(tmp_path: Path, where: int) -> None:
    vectors, kinds = ["(0.5,0,0)", "(0,0.75,0)", "(0,0,2)"], ["domain"] * 3
    vectors.insert(where, "none")
    kinds.insert(where, "list")
    more = [f"space directions: {' '.join(vectors)}", f"kinds: {' '.join(kinds)}"]
    voxels = np.expand_dims(VOXELS, 3 - where)
    compare(write_nrrd(tmp_path / "scan.nrrd", voxels, without=["space directions"], more=more))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">f4", "u1", "<f8"])
def test_metaimage(tmp_path: Path, packed: bool, dtype: str) -> None:
    compare(write_metaimage(tmp_path / "scan.mha", VOXELS.astype(dtype), packed=packed))


def test_metaimage_packed_by_gzip(tmp_path: Path) -> None:
    data = gzip.compress(VOXELS.tobytes())
    compare(write_metaimage(tmp_path / "scan.mha", VOXELS, packed=True, data=data))


@pytest.mark.parametrize("more", [["HeaderSize = 7"], ["HeaderSize = -1"]])
def test_metaimage_with_bytes_before_the_voxels(tmp_path: Path, more: Sequence[str]) -> None:
    (tmp_path / "scan.raw").write_bytes(b"skipped" + VOXELS.tobytes())
    compare(write_metaimage(tmp_path / "scan.mhd", VOXELS, more=more, source="scan.raw"))


def test_metaimage_without_matrix_stands_as_lps(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    write_metaimage(path, VOXELS)
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = 0 1 0 0 0 -1 1 0 0\n", b""))
    compare(path)
    assert volume_facts(path).orientation == "LPS"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">f4", "u1", "?", "<f8"])
def test_arrays(tmp_path: Path, order: str, dtype: str) -> None:
    voxels = np.asarray(VOXELS.astype(dtype), order=order)
    np.save(tmp_path / "scan.npy", voxels)
    volume = read_volume(tmp_path / "scan.npy")
    np.testing.assert_array_equal(volume.voxels, voxels.astype(np.float32))
    assert volume.voxels.flags.c_contiguous and volume.orientation == "RAS"


def test_blocks_that_do_not_end_with_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmllm_plugins.data.readers.voxels._BLOCK", 130)  # two slices, and a rest of one
    monkeypatch.setattr("medmllm_plugins.data.readers.byte_sources.CHUNK", 7)
    voxels = np.concatenate([VOXELS, VOXELS[:1]])
    for encoding in ("raw", "gzip", "bzip2", "hex", "ascii"):
        path = write_nrrd(tmp_path / f"{encoding}.nrrd", voxels, encoding)
        np.testing.assert_array_equal(read_volume(path, orientation="LPS").voxels, voxels)


@pytest.mark.parametrize("name", ["space directions", "space"])
def test_nrrd_without_orientation(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="left and right are unknown"):
        read_volume(write_nrrd(tmp_path / "scan.nrrd", VOXELS, without=[name]))


def test_a_metaimage_written_by_hand(tmp_path: Path) -> None:
    path = write_metaimage(tmp_path / "scan.mha", VOXELS)
    header, data = path.read_bytes().split(b"ElementDataFile")
    path.write_bytes(b"\n" + header.replace(b"NDims", b"\n \r\nNDims") + b"ElementDataFile" + data)
    compare(path)
