"""A header's data file lies below the header's folder, and nothing that is no regular file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.volume_files import write_metaimage, write_nrrd

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.data.readers.image_reader import read_picture
from medmllm_plugins.data.readers.pillow_images import read_rgb
from medmllm_plugins.data.readers.volumes import read_volume, volume_facts
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import data_file_below, open_regular

VOXELS = np.random.default_rng(0).integers(-2000, 2000, (4, 5, 6)).astype("<i2")


def write_detached(folder: Path, ending: str, source: str) -> Path:
    if ending == ".mhd":
        return write_metaimage(folder / "scan.mhd", VOXELS, source=source)
    return write_nrrd(folder / "scan.nhdr", VOXELS, more=[f"data file: {source}"], data=b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data of the right length below it, beside it and behind links."""
    inner = tmp_path / "set"
    (inner / "sub").mkdir(parents=True)
    for path in (inner / "scan.raw", inner / "sub" / "scan.raw", tmp_path / "secret.raw"):
        path.write_bytes(VOXELS.tobytes())
    (inner / "inside.raw").symlink_to("sub/scan.raw")
    (inner / "outside.raw").symlink_to("../secret.raw")
    (inner / "out").symlink_to("..")
    (inner / "loop.raw").symlink_to("loop.raw")
    (inner / "nothing.raw").symlink_to("missing.raw")
    os.mkfifo(inner / "pipe.raw")
    (inner / "device.raw").symlink_to("/dev/zero")
    for index in range(1, 5):
        (inner / f"{index}.raw").write_bytes(VOXELS[0].tobytes())
    return inner


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("source", ["scan.raw", "sub/scan.raw", "./scan.raw", "inside.raw"])
def test_data_below_the_folder_are_read(folder: Path, ending: str, source: str) -> None:
    volume = read_volume(write_detached(folder, ending, source))
    assert sorted(volume.voxels.ravel()) == sorted(VOXELS.ravel())


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/etc/passwd", "absolute path"),
        ("{outside}/secret.raw", "absolute path"),
        ("{inside}/scan.raw", "absolute path"),
        ("../secret.raw", "climbs"),
        ("sub/../../secret.raw", "climbs"),
        ("..\\secret.raw", "climbs"),
        ("C:\\secret.raw", "absolute path"),
        ("~/secret.raw", "absolute path"),
        ("outside.raw", "a link that leads out"),
        ("out/secret.raw", "a link that leads out"),
        ("device.raw", "a link that leads out"),
        ("loop.raw", "none there"),
        ("nothing.raw", "none there"),
        ("missing.raw", "none there"),
        ("pipe.raw", "something else than a file"),
        ("sub", "something else than a file"),
        ("LIST", "several files"),
        ("LIST 2", "several files"),
        ("%d.raw 1 4 1", "several files"),
        ("%03d.raw 1 4 1", "several files"),
        ("scan.raw 1 4 1", "several files"),
    ],
)
def test_data_elsewhere_are_refused(folder: Path, ending: str, source: str, says: str) -> None:
    name = source.format(outside=folder.parent, inside=folder)
    path = write_detached(folder, ending, name)
    for read in (read_volume, volume_facts):
        with pytest.raises(DataError, match=rf"scan\{ending}: expected a header whose data file .*{says}"):
            read(path)


def test_a_header_reached_by_a_link_is_judged_by_the_folder_it_is_named_in(folder: Path, tmp_path: Path) -> None:
    write_detached(folder, ".mhd", "scan.raw")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.mhd").symlink_to(folder / "scan.mhd")
    with pytest.raises(DataError, match="none there"):
        read_volume(tmp_path / "other" / "scan.mhd")
    (tmp_path / "linked").symlink_to(folder)  # the folder itself may be a link
    read_volume(tmp_path / "linked" / "scan.mhd")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\0", "x" * 5000])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="expected a header whose data file") as caught:
        data_file_below(tmp_path / "scan.mhd", name)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii", "scan.nii.gz", "scan.nrrd", "scan.npy", "scan.dcm"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="got a folder, pipe or device"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(("read", "name"), [(read_rgb, "a.png"), (read_picture, "a.npy"), (read_picture, "a.jpg")])
def test_pictures_and_tables_that_are_pipes(tmp_path: Path, read: Callable[[Path], object], name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="got a folder, pipe or device"):
        read(tmp_path / name)
    os.mkfifo(tmp_path / "rows.csv")
    faults = Faults("rows", str(tmp_path))
    assert read_rows(tmp_path / "rows.csv", [], faults) == []
    with pytest.raises(DataError, match="got a folder, pipe or device"):
        faults.stop()


def test_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="got a folder, pipe or device"):
        open_regular(tmp_path / "zero.png")
