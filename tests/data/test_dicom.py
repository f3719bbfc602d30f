"""Read DICOM series: slices sorted by position, faults named, and no patient data in messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.dicom_files import ENHANCED_CT, MARKER, US, frame_tags, write_dicom, write_series

from medmllm_plugins.data.readers.dicom import read_dicom_image
from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.errors import DataError

STORED = np.arange(6 * 4 * 5, dtype=np.int16).reshape(6, 4, 5)


def test_a_shuffled_series_is_sorted_by_place(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", STORED, rescale=(-1024, 2), shuffle=True)
    volume = read_volume(tmp_path / "scan", orientation="LPS")
    assert np.array_equal(volume.voxels, STORED.astype(np.float32) * 2 - 1024)  # slope and intercept, once
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7)) and volume.unit == "HU"
    assert np.array_equal(read_volume(tmp_path / "scan").voxels, volume.voxels[:, ::-1, ::-1])


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", STORED, leave_out=[3])
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path / "scan")
    message = str(caught.value)
    assert "105" in message and "110" in message and "missing" in message


def test_texts_beside_the_slices_are_left_alone(tmp_path: Path) -> None:
    for index in range(3):
        write_dicom(tmp_path / f"IM{index}", np.full((4, 5), index, np.uint16), position=(0, 0, index))
    (tmp_path / "LICENSE").write_text("Creative Commons – Attribution\n" * 30, encoding="utf-8")
    (tmp_path / "VERSION").write_text("3")
    assert read_volume(tmp_path).voxels.shape == (3, 4, 5)
    (tmp_path / "IM3").write_bytes(b"\0" * 300)  # a slice that is damaged stays an error
    with pytest.raises(DataError, match="IM3"):
        read_volume(tmp_path)


def test_two_slices_in_one_place_and_two_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "twice", STORED)
    (tmp_path / "twice" / "copy.dcm").write_bytes(paths[2].read_bytes())
    with pytest.raises(DataError, match="twice"):
        read_volume(tmp_path / "twice")
    write_series(tmp_path / "two", STORED, series="1.2.3")
    write_dicom(tmp_path / "two" / "other.dcm", STORED[0], position=(0, 0, 0), series="1.2.4")
    with pytest.raises(DataError, match=r"series.*own folder"):
        read_volume(tmp_path / "two")


def test_a_tilted_series_is_sorted_along_its_own_normal(tmp_path: Path) -> None:
    tilt = np.deg2rad(30)
    orientation = (1, 0, 0, 0, np.cos(tilt), np.sin(tilt))
    write_series(tmp_path / "scan", STORED, orientation=orientation)
    volume = read_volume(tmp_path / "scan", orientation="LPS")
    assert np.array_equal(volume.voxels, STORED.astype(np.float32))
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))


def test_a_multi_frame_file(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, float(z)) for z in (9, 6, 3, 0, 12, 15)]
    tags = frame_tags(positions, rescales=[(-1000, 1)] * 6)
    path = write_dicom(tmp_path / "scan.dcm", STORED, orientation=None, spacing=None, sop=ENHANCED_CT, extra=tags)
    volume = read_volume(path, orientation="LPS")
    assert np.array_equal(volume.voxels, STORED[[3, 2, 1, 0, 4, 5]].astype(np.float32) - 1000)
    assert volume.spacing == pytest.approx((3.0, 0.8, 0.7))


def test_a_series_of_one_slice_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", STORED[:1])
    with pytest.raises(DataError, match="scan"):
        read_volume(tmp_path / "scan")


def test_monochrome1_is_turned_so_that_bright_is_bright(tmp_path: Path) -> None:
    pixels = np.array([[0, 50], [100, 200]], dtype=np.uint8)
    shown = {}
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = write_dicom(tmp_path / f"{photometric}.dcm", pixels, photometric=photometric, modality="CR", sop=US)
        image = read_dicom_image(path)
        assert image.mode == "RGB" and image.size == (2, 2)
        shown[photometric] = np.asarray(image)[..., 0].astype(int)
    assert np.array_equal(shown["MONOCHROME1"], 255 - shown["MONOCHROME2"])
    assert shown["MONOCHROME2"][0, 0] == 0 and shown["MONOCHROME2"][1, 1] == 255


@pytest.mark.parametrize("length", [0, 100, 131, 140, 600, -10])
def test_a_truncated_file_is_an_error(tmp_path: Path, length: int) -> None:
    path = write_dicom(tmp_path / "scan.dcm", STORED[0], position=(0, 0, 0))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"scan\.dcm"):
        read_volume(path)


def test_no_name_date_or_id_reaches_a_message_or_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    messages = []
    paths = write_series(tmp_path / "good", STORED)
    messages.append(repr(read_volume(tmp_path / "good")))
    faulty = {"gap": [2], "one": [1, 2, 3, 4, 5]}
    for name, leave_out in faulty.items():
        write_series(tmp_path / name, STORED, leave_out=leave_out)
    write_series(tmp_path / "two", STORED)
    write_dicom(tmp_path / "two" / "x.dcm", STORED[0], position=(0, 0, 0), series="9.9")
    write_series(tmp_path / "cut", STORED)
    first = next((tmp_path / "cut").iterdir())
    first.write_bytes(paths[0].read_bytes()[:-30])
    for name in ("gap", "one", "two", "cut"):
        with pytest.raises(DataError) as caught:
            read_volume(tmp_path / name)
        messages.append(str(caught.value))
    printed = capfd.readouterr()
    everything = " ".join([*messages, caplog.text, printed.out, printed.err])
    assert MARKER not in everything and "19010203" not in everything
