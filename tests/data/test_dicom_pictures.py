"""DICOM pictures of every kind that people have: colours, palettes, films, windows, files without a prefix."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from support.dicom_files import CT, ENHANCED_CT, JPEG_BASELINE, US, element, frame_tags, write_dicom

from medmllm_plugins.data.readers.dicom import read_dicom_image, shows_volume
from medmllm_plugins.data.readers.dicom_header import read_header
from medmllm_plugins.data.readers.image_reader import may_be_dicom, picture_size, read_picture
from medmllm_plugins.data.readers.picture_options import PictureOptions
from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.errors import DataError

GENERATOR = np.random.default_rng(3)
COLOURS = GENERATOR.integers(0, 256, (6, 8, 3)).astype(np.uint8)
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def save(path: Path, syntax: str, pixels: np.ndarray, photometric: str, **tags: Any) -> Dataset:
    """Write with pydicom, so that how it is written depends on neither this package nor its tests."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = US
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.Modality, header.PhotometricInterpretation = "US", photometric
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    header.BitsAllocated = header.BitsStored = pixels.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    header.add_new(0x7FE00010, "OB" if pixels.itemsize == 1 else "OW", stored.tobytes())
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return header


def shown(path: Path, **options: Any) -> np.ndarray:
    return np.asarray(read_dicom_image(path, PictureOptions(**options)))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_colours_in_every_transfer_syntax(tmp_path: Path, syntax: Any) -> None:
    path = tmp_path / "a.dcm"
    save(path, syntax, COLOURS, "RGB")
    assert np.array_equal(shown(path), COLOURS)
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    save(path, syntax, COLOURS, "RGB", PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(shown(path), COLOURS)
    save(path, syntax, COLOURS, "YBR_FULL")
    assert np.array_equal(shown(path), convert_color_space(COLOURS, "YBR_FULL", "RGB"))
    deep = GENERATOR.integers(0, 65_536, (6, 8, 3)).astype(np.uint16)
    save(path, syntax, deep, "RGB")
    assert np.array_equal(shown(path), np.rint(deep / 257))
    grey = GENERATOR.integers(-500, 500, (6, 8)).astype(np.int16)
    save(path, syntax, grey, "MONOCHROME2")
    assert np.array_equal(shown(path)[..., 0], np.rint((grey - grey.min()) / (grey.max() - grey.min()) * 255))


def test_two_pixels_share_their_colour(tmp_path: Path) -> None:
    pairs = GENERATOR.integers(0, 256, (6 * 4, 4)).astype(np.uint8)
    save(tmp_path / "a.dcm", ExplicitVRLittleEndian, COLOURS, "YBR_FULL_422", PixelData=pairs.tobytes())
    whole = np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1).reshape(6, 8, 3)
    assert np.array_equal(shown(tmp_path / "a.dcm"), convert_color_space(whole, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda syntax: syntax.name)
def test_palettes(tmp_path: Path, bits: int, syntax: Any) -> None:
    indices = GENERATOR.integers(0, 40, (6, 8)).astype(np.uint8)
    tables = GENERATOR.integers(0, 2**bits, (3, 30)).astype(f"u{bits // 8}")
    tags: dict[str, Any] = {}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [30, 5, bits]
        written = table.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2") if bits == 16 else table
        if bits == 8 and syntax == ExplicitVRBigEndian:
            written = table.reshape(-1, 2)[:, ::-1]  # bytes within words
        tags[f"{colour}PaletteColorLookupTableData"] = written.tobytes()
    save(tmp_path / "a.dcm", syntax, indices, "PALETTE COLOR", **tags)
    wanted = tables[:, np.clip(indices.astype(int) - 5, 0, 29)].transpose(1, 2, 0) >> (bits - 8)
    assert np.array_equal(shown(tmp_path / "a.dcm"), wanted)
    if syntax == ImplicitVRLittleEndian:
        header = pydicom.dcmread(tmp_path / "a.dcm")
        assert np.array_equal(apply_color_lut(indices, header) >> (bits - 8), wanted)


def test_a_palette_in_segments(tmp_path: Path) -> None:
    # Two entries as they are, a line of four, and the same two again.
    segments = np.array([0, 2, 100, 200, 1, 4, 1000, 2, 1, 0, 0], "<u2")
    descriptor = np.array([8, 0, 16], "<u2").tobytes()
    extra: dict[int, tuple[str, Any]] = {}
    for index in range(3):
        extra[0x00281101 + index] = ("US", descriptor)
        extra[0x00281221 + index] = ("OW", segments.tobytes())
    indices = np.arange(8, dtype=np.uint8).reshape(2, 4)
    path = write_dicom(tmp_path / "a.dcm", indices, photometric="PALETTE COLOR", extra=extra)
    table = np.array([100, 200, 400, 600, 800, 1000, 100, 200]) // 256
    assert np.array_equal(shown(path)[..., 0].ravel(), table)
    endless = np.array([0, 2, 1, 2, *[2, 65_535, 0, 0] * 2000], "<u2")
    extra |= {0x00281221: ("OW", endless.tobytes()), 0x00281101: ("US", np.array([0, 0, 16], "<u2").tobytes())}
    write_dicom(path, indices, photometric="PALETTE COLOR", extra=extra)
    with pytest.raises(DataError, match=r"a\.dcm: expected a palette"):
        shown(path)


def test_bits_around_the_stored_ones_are_left_out(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 4095, 2048]], np.uint16)
    overlaid = stored | np.uint16(0xF000)
    path = write_dicom(tmp_path / "a.dcm", overlaid, bits=12, position=(0, 0, 0))
    assert np.array_equal(read_volume(path).voxels[0], stored)
    write_dicom(path, overlaid.view(np.int16), bits=12, position=(0, 0, 0))
    assert np.array_equal(read_volume(path).voxels[0], [[0, 1, -1, -2048]])


def test_frames_of_a_film(tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 6), index * 10, np.uint8) for index in range(12)])
    frames[:, 0, 0], frames[:, 0, 1] = 0, 255
    path = write_dicom(tmp_path / "film.dcm", frames, modality="US", sop=US, spacing=None, orientation=None)
    for frame, index in (("first", 0), ("middle", 6), ("1", 0), ("12", 11)):
        assert shown(path, frame=frame)[3, 5, 0] == index * 10
    montage = shown(path, frame="all")
    assert montage.shape == (12, 18, 3)
    corners = montage[3::4, 5::6, 0].ravel().astype(int)
    assert corners.tolist() == [0, 20, 30, 40, 60, 70, 80, 100, 110]
    assert read_header(path, geometry=False).size[2] == 12 and not shows_volume(path)
    with pytest.raises(DataError, match=r"film\.dcm: expected at least 13 frames, got 12"):
        shown(path, frame="13")
    for wrong in ("last", "0", "-1", "1.5", ""):
        with pytest.raises(DataError, match="`frame`"):
            PictureOptions(frame=wrong)
    tags = frame_tags([(0.0, 0.0, float(z)) for z in range(12)])
    assert shows_volume(write_dicom(path, frames, sop=ENHANCED_CT, spacing=None, orientation=None, extra=tags))


def test_a_film_of_compressed_colours(tmp_path: Path) -> None:
    streams = []
    for level in (0, 120, 240):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (level, 30, 200)).save(buffer, "JPEG", quality=95)
        streams.append(buffer.getvalue())
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    path = write_dicom(
        tmp_path / "film.dcm", pixels, photometric="YBR_FULL_422", syntax=JPEG_BASELINE, fragments=streams, spacing=None
    )
    for number, stream in enumerate(streams, 1):
        with Image.open(io.BytesIO(stream)) as image:
            difference = np.abs(shown(path, frame=str(number)).astype(int) - np.asarray(image))
        assert difference.max() <= 2


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("form", ["JFIF", "Adobe", "named"])
def test_compressed_colours_are_what_their_own_markers_say(tmp_path: Path, stated: str, form: str) -> None:
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:, :8], colours[:, 8:] = (200, 30, 60), (20, 160, 240)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "JPEG", quality=95, subsampling=0, keep_rgb=form != "JFIF")
    stream = buffer.getvalue()
    if form == "named":  # R, G and B without Adobe's marker
        assert stream[2:4] == b"\xff\xee"
        stream = stream[:2] + stream[4 + int.from_bytes(stream[4:6]) :]
    path = write_dicom(
        tmp_path / "a.dcm", colours, photometric=stated, syntax=JPEG_BASELINE, fragments=[stream], spacing=None
    )
    assert np.abs(shown(path).astype(int) - colours).max() <= 12


def test_the_private_transfer_syntax_of_ge_has_big_endian_pixels(tmp_path: Path) -> None:
    grey = np.array([[1, 256, 4095]], np.uint16)
    save(tmp_path / "a.dcm", ImplicitVRLittleEndian, grey, "MONOCHROME2", PixelData=grey.astype(">u2").tobytes())
    content = (tmp_path / "a.dcm").read_bytes()
    syntax = element(0x00020010, "UI", b"1.2.840.10008.1.2\0")
    assert content.count(syntax) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(syntax, element(0x00020010, "UI", b"1.2.840.113619.5.2")))
    wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.dcm")))[0]
    assert np.array_equal(wanted, grey) and np.array_equal(read_volume(tmp_path / "a.dcm").voxels[0], grey)


def test_private_elements_as_careless_writers_leave_them(tmp_path: Path) -> None:
    pixels = np.array([[0, 65_535, 700]], np.uint16)
    content = write_dicom(tmp_path / "a.dcm", pixels, position=None).read_bytes()
    start = content.index(b"\x28\0\x02\0US")
    unstated = struct.pack("<HH2sHI", 0x0021, 0x1001, b"UN", 0, 0xFFFFFFFF)
    item, item_end, end = (
        struct.pack("<HHI", 0xFFFE, part, size) for part, size in ((0xE000, 0xFFFFFFFF), (0xE00D, 0), (0xE0DD, 0))
    )
    typed, plain = element(0x00211002, "LO", "abcd"), struct.pack("<HHI", 0x0021, 0x1002, 4) + b"abcd"
    fragments = struct.pack("<HHI", 0xFFFE, 0xE000, 4) + b"abcd" + end
    for private in (
        unstated + item + typed + item_end + end,
        unstated + item + plain + item_end + end,
        unstated.replace(b"UN", b"OB") + fragments,
        end,
    ):
        for changed in (content[:start] + private + content[start:], content + private):
            (tmp_path / "a.dcm").write_bytes(changed)
            assert np.array_equal(read_volume(tmp_path / "a.dcm").voxels[0], pixels)
            assert np.array_equal(pydicom.dcmread(tmp_path / "a.dcm").pixel_array, pixels)
    (tmp_path / "a.dcm").write_bytes(content[:start] + item_end + content[start:])
    with pytest.raises(DataError, match="a delimiter that does not belong there"):
        read_volume(tmp_path / "a.dcm")


def test_what_writers_leave_around_a_whole_picture(tmp_path: Path) -> None:
    pixels = np.array([[0, 65_535, 700]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, position=None, extra={0x00280008: ("IS", "0")})
    assert np.array_equal(read_volume(path).voxels[0], pixels)
    write_dicom(path, pixels, position=None, extra={0x00280102: ("US", 11)})  # the high bit of another file
    assert np.array_equal(read_volume(path).voxels[0], pixels)
    content = path.read_bytes()
    for tail in (b"\n", b"\r\n", b"\r\n\r\n"):
        path.write_bytes(content + tail)
        assert np.array_equal(read_volume(path).voxels[0], pixels)
    path.write_bytes(content + b"\x08\0\x05\0CS\x0a\0ISO")
    with pytest.raises(DataError, match="cut short"):
        read_volume(path)


def test_a_window_of_the_users(tmp_path: Path) -> None:
    hounsfield = np.array([[-1350, -600, 150, 40]], np.int16)
    header_window = {0x00281050: ("DS", 40), 0x00281051: ("DS", 80)}
    path = write_dicom(tmp_path / "a.dcm", hounsfield, rescale=(0, 1), extra=header_window)
    assert shown(path, window="lung")[0, :, 0].tolist() == [0, 128, 255, 236]
    assert shown(path, window="40/100")[0, :, 0].tolist() == [0, 0, 255, 128]
    assert shown(path)[0, :, 0].tolist() == [0, 0, 255, 129]
    write_dicom(path, hounsfield, modality="MR")
    with pytest.raises(DataError, match="Hounsfield"):
        shown(path, window="lung")
    assert shown(path, window="40/100")[0, 3, 0] == 128
    save(path, ExplicitVRLittleEndian, COLOURS, "RGB")
    with pytest.raises(DataError, match=r"a\.dcm: expected a grey picture for a window, got colours"):
        shown(path, window="40/100")
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected a DICOM file for a window"):
        read_picture(tmp_path / "a.png", PictureOptions(window="40/100"))


@pytest.mark.parametrize(
    "extra",
    [
        {0x00280030: ("DS", "0\\0")},
        {0x00280030: ("DS", "nonsense")},
        {0x00200037: ("DS", "0\\0\\0\\0\\0\\0")},
        {0x00200032: ("DS", "1")},
    ],
)
def test_geometry_that_is_wrong_stops_no_picture(tmp_path: Path, extra: dict[int, tuple[str, Any]]) -> None:
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    path = write_dicom(tmp_path / "a.dcm", pixels, extra=extra)
    assert shown(path).shape == (4, 5, 3) and picture_size(path) == (5, 4)
    with pytest.raises(DataError, match=r"a\.dcm: expected"):
        read_volume(path)


def test_files_without_the_prefix(tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    whole = write_dicom(tmp_path / "whole.dcm", pixels, position=(0, 0, 0), rescale=(-1024, 1), sop=CT)
    content = whole.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    header = pydicom.dcmread(whole)
    del header.file_meta
    implicit = io.BytesIO()
    header.save_as(implicit, implicit_vr=True, little_endian=True)
    wanted = read_volume(whole)
    for index, bare in enumerate((content[132:], content[start:], implicit.getvalue())):
        path = tmp_path / f"IM{index}"
        path.write_bytes(bare)
        assert may_be_dicom(path)
        assert np.array_equal(read_volume(path).voxels, wanted.voxels) and read_volume(path).unit == "HU"
    for text in (b"", b"readme", b"\x08\x00", b"PK\3\4" * 40):
        (tmp_path / "README").write_bytes(text)
        assert not may_be_dicom(tmp_path / "README")


def test_frames_have_their_own_slope(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(3, 2, 4)
    rescales = [(-10.0, 2.0), (0.5, 0.25), (3.0, 1.0)]
    tags = frame_tags([(0.0, 0.0, float(z)) for z in range(3)], rescales=rescales)
    path = write_dicom(tmp_path / "a.dcm", stored, sop=ENHANCED_CT, spacing=None, orientation=None, extra=tags)
    wanted = np.stack([frame * slope + shift for frame, (shift, slope) in zip(stored, rescales, strict=True)])
    assert np.array_equal(read_volume(path, orientation="LPS").voxels, wanted.astype(np.float32))
