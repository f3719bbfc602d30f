"""Damaged and lying volume files are errors: flipped bits, lengths that do not agree, more inside than stated."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.volume_files import write_metaimage, write_nrrd

from medmllm_plugins.data.readers.decode_limit import VARIABLE
from medmllm_plugins.data.readers.nifti import packed_nifti_sum
from medmllm_plugins.data.readers.volumes import Volume, read_volume, volume_facts
from medmllm_plugins.errors import DataError

VOXELS = np.random.default_rng(0).integers(-2000, 2000, (4, 5, 6)).astype("<i2")


def write_nifti(path: Path, voxels: np.ndarray = VOXELS, **changes: tuple[str, int, float]) -> Path:
    """A NIfTI-1 file; a change is a format of struct, an offset and a value."""
    header = bytearray(352)
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64}
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *voxels.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, codes[voxels.dtype.str[1:]], voxels.itemsize * 8)
    struct.pack_into("<4f", header, 76, 1, 0.5, 0.75, 2)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 1, 0)
    header[344:348] = b"n+1\0"
    for code, offset, value in changes.values():
        struct.pack_into(code, header, offset, value)
    content = bytes(header) + voxels.tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


ALL_BITS = pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
"""A bit of each byte, another from byte to byte; in the slow job every bit."""


def flips(path: Path, read: Callable[[Path], Volume], step: int, until: int | None = None) -> list[tuple[int, int]]:
    """Single bits whose change is read as other voxels, or in another orientation, than before."""
    content, good = path.read_bytes(), read(path)
    wrong = []
    for position in range(len(content) if until is None else until):
        for bit in range(position * 3 % step, 8, step):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                volume = read(path)
            except DataError as error:
                assert len(str(error)) < 700
                continue
            if not np.array_equal(volume.voxels, good.voxels) or volume.orientation != good.orientation:
                wrong.append((position, bit))
    return wrong


@ALL_BITS
def test_every_flipped_bit_of_a_packed_metaimage(tmp_path: Path, step: int) -> None:
    path = write_metaimage(tmp_path / "scan.mha", VOXELS, packed=True)
    assert flips(path, read_volume, step) == []


@ALL_BITS
def test_every_flipped_bit_of_a_packed_nifti(tmp_path: Path, step: int) -> None:
    assert flips(write_nifti(tmp_path / "scan.nii.gz"), read_volume, step) == []


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
@ALL_BITS
def test_every_flipped_bit_of_a_packed_nrrd(tmp_path: Path, encoding: str, step: int) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", VOXELS, encoding)
    assert flips(path, read_volume, step) == []


@ALL_BITS
def test_every_flipped_bit_of_the_header_of_raw_data(tmp_path: Path, step: int) -> None:
    """Raw voxels carry no checksum: what changes in them cannot be seen, only what changes in the header."""
    for path in (write_metaimage(tmp_path / "scan.mha", VOXELS), write_nrrd(tmp_path / "scan.nrrd", VOXELS)):
        header = path.stat().st_size - VOXELS.nbytes
        assert flips(path, read_volume, step, until=header) == []


def test_a_spacing_that_is_misspelt(tmp_path: Path) -> None:
    path = write_metaimage(tmp_path / "scan.mha", VOXELS, packed=True)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", b"ElementSpacinh"))
    with pytest.raises(DataError, match="expected the field ElementSpacing, got 'ElementSpacinh'"):
        read_volume(path)


PACKED = zlib.compress(VOXELS.tobytes())


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (zlib.compress(VOXELS.tobytes()[:-2]), None, "expected at least 240 bytes"),
        (zlib.compress(VOXELS.tobytes() + b"\0"), None, "got more"),
        (zlib.compress(VOXELS.tobytes() + bytes(1 << 20)), None, "got more"),
        (PACKED[:-4] + b"\0\0\0\0", None, "checksum"),
        (PACKED[:-1], None, "checksum"),
        (PACKED[:-1], len(PACKED), "cut short"),
        (PACKED + b"\0", None, "got more"),
        (PACKED + PACKED, None, "got more"),
        (PACKED, len(PACKED) - 1, "CompressedDataSize"),
        (PACKED, len(PACKED) + 1, "cut short"),
        (PACKED, 0, "CompressedDataSize"),
        (b"", None, "checksum|at least"),
        (VOXELS.tobytes(), None, "checksum"),
    ],
)
def test_lengths_and_sums_of_a_packed_metaimage(tmp_path: Path, data: bytes, size: int | None, message: str) -> None:
    path = write_metaimage(tmp_path / "scan.mha", VOXELS, packed=True, data=data, size=size)
    with pytest.raises(DataError, match=message):
        read_volume(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DimSize = 6 5 4", b"DimSize = 6 5 5"),
        (b"DimSize = 6 5 4", b"DimSize = 6 5 3"),
        (b"DimSize = 6 5 4", b"DimSize = 6 5"),
        (b"DimSize = 6 5 4", b"DimSize = 6 5 -4"),
        (b"DimSize = 6 5 4", b"DimSize = 6 5 4000000000"),
        (b"DimSize = 6 5 4", b"DimSize = 6 5 99999999999999999999"),
        (b"NDims = 3", b"NDims = 2"),
        (b"NDims = 3", b"NDims = x"),
        (b"MET_SHORT", b"MET_INT"),
        (b"MET_SHORT", b"MET_SHORT_"),
        (b"CompressedData = True", b"CompressedData = False"),
        (b"CompressedData = True", b"CompressedData = Maybe"),
        (b"BinaryData = True", b"BinaryData = False"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = nan"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = 0x1"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = 0"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = 500"),
        (b"TransformMatrix = 0 1", b"TransformMatrix = 2 1"),
        (b"TransformMatrix = 0 1", b"TransformMatrix = 1"),
        (b"NDims = 3", b"NDims = 3\nNDims = 3"),
        (b"NDims = 3", b"NDims = 3\nElementNumberOfChannels = 3"),
        (b"NDims = 3", b"NDims = 3\nElementByteOrderMSB = True"),
        (b"NDims = 3", b"NDims = 3\nHeaderSize = 5"),
        (b"ObjectType = Image", b"ObjectType = Tube"),
    ],
)
def test_headers_of_metaimages_that_lie(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = write_metaimage(tmp_path / "scan.mha", VOXELS, packed=True)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=r"scan\.mha: expected"):
        read_volume(path)
    path = write_metaimage(tmp_path / "scan.mha", VOXELS)
    if b"Compressed" not in old:
        path.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(DataError, match=r"scan\.mha: expected"):
            volume_facts(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"sizes: 6 5 4", b"sizes: 6 5 5"),
        (b"sizes: 6 5 4", b"sizes: 6 5 3"),
        (b"sizes: 6 5 4", b"sizes: 6 5 4 1"),
        (b"sizes: 6 5 4", b"sizes: 6 5 0"),
        (b"sizes: 6 5 4", b"sizes: 60000 50000 40000"),
        (b"dimension: 3", b"dimension: 4"),
        (b"dimension: 3", b"dimension: 3\ndimension: 3"),
        (b"dimension: 3", b"dimension: 3\nfolder: x"),
        (b"type: int16", b"type: int32"),
        (b"type: int16", b"type: block"),
        (b"endian: little", b"endian: middle"),
        (b"endian: little\n", b""),
        (b"(0,0,2)", b"(0,0,nan)"),
        (b"(0,0,2)", b"(0,0)"),
        (b"(0,0,2)", b"none"),
        (b"(0,0,2)", b"(0,2,2)"),
        (b"(0,0,2)", b"(0,0,0)"),
        (b"(0,0,2)", b"(0,0,2"),
        (b"encoding: ", b"encoding: z"),
        (b"NRRD0004", b"NRRD0009"),
        (b"dimension: 3", b"dimension: 3\nbyte skip: -2"),
        (b"dimension: 3", b"dimension: 3\nbyte skip: 1"),
        (b"dimension: 3", b"dimension: 3\nline skip: 1000"),
        (b"dimension: 3", b"dimension: 3\nkinds: RGB-color domain domain"),
        (b"dimension: 3", b"dimension: 3\nkinds: domain"),
    ],
)
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_headers_of_nrrd_files_that_lie(tmp_path: Path, old: bytes, new: bytes, encoding: str) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", VOXELS, encoding)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=r"scan\.nrrd: expected"):
        read_volume(path)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("ascii", b"1 2 3"),
        ("ascii", b"1 " * 121),
        ("ascii", b"1 " * 119 + b"70000"),
        ("ascii", b"1 " * 119 + b"x"),
        ("ascii", b"1 " * 119 + b"1" * 5000),
        ("hex", b"00" * 239),
        ("hex", b"00" * 239 + b"0"),
        ("hex", b"00" * 241),
        ("hex", b"0g" * 240),
        ("gzip", gzip.compress(VOXELS.tobytes()) + b"x"),
        ("gzip", gzip.compress(VOXELS.tobytes()) + gzip.compress(b"x")),
        ("gzip", gzip.compress(VOXELS.tobytes())[:-1]),
    ],
)
def test_data_of_nrrd_files_that_do_not_go_with_the_header(tmp_path: Path, encoding: str, data: bytes) -> None:
    with pytest.raises(DataError, match=r"scan\.nrrd: expected"):
        read_volume(write_nrrd(tmp_path / "scan.nrrd", VOXELS, encoding, data=data))


@pytest.mark.parametrize(
    "change",
    [
        ("<h", 40, 0),
        ("<h", 40, 8),
        ("<h", 40, 4096),
        ("<h", 46, 5),
        ("<h", 46, 3),
        ("<h", 46, -4),
        ("<h", 46, 0),
        ("<h", 70, 8),
        ("<h", 70, 128),
        ("<h", 70, 32),
        ("<h", 70, 0),
        ("<h", 72, 32),
        ("<h", 72, 0),
        ("<f", 80, float("nan")),
        ("<f", 80, 0.0),
        ("<f", 80, -1.0),
        ("<f", 80, float("inf")),
        ("<f", 108, 348.0),
        ("<f", 108, 352.5),
        ("<f", 108, float("nan")),
        ("<f", 108, 1e30),
        ("<f", 108, 353.0),
        ("<h", 252, 0),
        ("<f", 256, 3.0),
        ("<f", 256, float("nan")),
        ("<i", 0, 347),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_headers_of_nifti_files_that_lie(tmp_path: Path, change: tuple[str, int, float], ending: str) -> None:
    read_volume(write_nifti(tmp_path / f"scan{ending}"))
    with pytest.raises(DataError, match=r"scan\.nii(\.gz)?: expected"):
        read_volume(write_nifti(tmp_path / f"scan{ending}", change=change))


def test_more_in_a_packed_nifti_than_its_header_states(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz")
    content = gzip.decompress(path.read_bytes())
    for more in (b"\0", bytes(1 << 20)):
        path.write_bytes(gzip.compress(content + more))
        with pytest.raises(DataError, match="got more"):
            read_volume(path)
        with pytest.raises(DataError, match=r"expected 592 bytes of data .* got more"):
            packed_nifti_sum(path)
    path.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(DataError, match=r"scan\.nii\.gz: expected at least 592 bytes of data"):
        packed_nifti_sum(path)


def test_packed_nifti_files_in_several_members_or_padded(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz")
    content, voxels, total = gzip.decompress(path.read_bytes()), read_volume(path).voxels, packed_nifti_sum(path)
    for packed in (
        gzip.compress(content) + bytes(512),  # a block filled up, as tapes and some tools leave it
        gzip.compress(content[:400]) + gzip.compress(content[400:]),
        gzip.compress(content) + gzip.compress(b""),  # the end of a file by bgzip
    ):
        path.write_bytes(packed)
        assert np.array_equal(read_volume(path).voxels, voxels)
        assert packed_nifti_sum(path) == total
    damaged = bytearray(packed)
    damaged[len(gzip.compress(content)) - 8] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="checksum"):
        packed_nifti_sum(path)


def test_an_error_names_the_limit_and_how_to_raise_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz")
    monkeypatch.setenv(VARIABLE, "239")
    with pytest.raises(DataError, match=rf"at most 239 bytes of decoded data, .* 352.*{VARIABLE}=1M"):
        read_volume(path)
    monkeypatch.setenv(VARIABLE, "352")  # what stands before the voxels is passed over, and counts for itself
    read_volume(path)


@pytest.mark.parametrize("shape", [(512, 512, 1025), (1 << 20, 1 << 20, 1 << 20), (2**40, 2, 2)])
def test_a_header_that_states_more_than_the_limit_allocates_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", VOXELS.astype("u1"), "gzip")
    sizes = f"sizes: {' '.join(map(str, shape))}"
    path.write_bytes(path.read_bytes().replace(b"sizes: 6 5 4", sizes.encode()))
    with pytest.raises(DataError, match=r"at most 536,870,912 bytes|expected sizes"):
        read_volume(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\0\xff\xff{}", b"\x93NUMPY\x02\0\xff\xff\xff\x7f"]
)
def test_arrays_with_damaged_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"scan\.npy: expected"):
        read_volume(tmp_path / "scan.npy")


@pytest.mark.parametrize("length", [-1, 1, -240, 1 << 20])
def test_arrays_of_another_length_than_stated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, VOXELS)
    os.truncate(path, path.stat().st_size + length)
    with pytest.raises(DataError, match=r"scan\.npy: expected a NumPy array of 240 bytes"):
        read_volume(path)
