"""No hostile file takes a gigabyte at the default limit, measured in processes that read one file each."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read the peak from"),
]

READ = """
import sys
from pathlib import Path
from medmllm_plugins.errors import DataError
if sys.argv[1] == "volume":
    from medmllm_plugins.data.readers.volumes import read_volume as read
else:
    from medmllm_plugins.data.readers.image_reader import read_picture as read
try:
    read(Path(sys.argv[2]))
    outcome = "read"
except DataError as error:
    outcome = "refused"
# Not ru_maxrss, which counts what the process was before it became this one.
status = Path("/proc/self/status").read_text()
print(outcome, int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""
GIGABYTE = 10**9


def peak(kind: str, path: Path) -> tuple[str, int]:
    """How a file was met, and the most memory the process had."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", READ, kind, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    outcome, size = run.stdout.split()
    return outcome, int(size)


def deflated(path: Path, head: bytes, zeros: int, wbits: int) -> Path:
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    with path.open("wb") as opened:
        opened.write(packer.compress(head))
        for _ in range(zeros >> 20):
            opened.write(packer.compress(bytes(1 << 20)))
        opened.write(packer.compress(bytes(zeros & 0xFFFFF)))
        opened.write(packer.flush())
    return path


def nifti(shape: tuple[int, int, int]) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 0.7, 0.7, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


@pytest.mark.parametrize(
    ("shape", "inside", "most"),
    [
        ((64, 64, 64), 3_000_000_000, 300_000_000),
        ((1000, 512, 512), 1000 * 512 * 512 * 2 + 1, GIGABYTE),
        ((1000, 512, 512), 1000 * 512 * 512 * 2 - 1, GIGABYTE),
        ((1100, 512, 512), 1100 * 512 * 512 * 2, 300_000_000),
    ],
)
def test_packed_volumes_that_lie(tmp_path: Path, shape: tuple[int, int, int], inside: int, most: int) -> None:
    outcome, size = peak("volume", deflated(tmp_path / "scan.nii.gz", nifti(shape), inside, 31))
    assert outcome == "refused" and size < most


def test_a_scan_of_a_thousand_slices_is_read(tmp_path: Path) -> None:
    """An honest volume takes its four bytes a voxel, and little more."""
    shape = (1000, 512, 512)
    outcome, size = peak("volume", deflated(tmp_path / "scan.nii.gz", nifti(shape), int(np.prod(shape)) * 2, 31))
    # 155 MB are imports; what threads hold of the file at a time takes 85 to 230 MB, by how they are scheduled.
    assert outcome == "read" and size < int(np.prod(shape)) * 4 + 450_000_000


def picture(mode: str, side: int, **how: object) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (side, side)).save(path, **how)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.png", picture("RGBA", 9459)),
        ("a.png", picture("I;16", 9459)),
        ("a.tiff", picture("F", 9459, compression="tiff_adobe_deflate")),
        ("a.tiff", picture("RGBA", 9459, compression="tiff_adobe_deflate")),
        ("a.jpg", picture("CMYK", 8190, progressive=True)),
        ("a.jp2", picture("RGBA", 5790)),
        ("a.webp", picture("RGBA", 6680, lossless=True)),
        ("a.gif", picture("P", 9459)),
        ("a.bmp", picture("RGB", 9459)),
    ],
)
def test_the_largest_pictures_of_each_format(
    tmp_path: Path, name: str, save: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    save(tmp_path / name)
    outcome, size = peak("picture", tmp_path / name)
    assert outcome == "read" and size < GIGABYTE


def test_a_tile_larger_than_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "tiled.tiff"
    fields = [
        (256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, 40_000), (323, 4, 40_000), (324, 4, 200), (325, 4, 2_000_000),
    ]  # fmt: skip
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in fields
    )
    head = (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0")
    path.write_bytes(head + zlib.compress(bytes(1_600_000_000), 1))
    outcome, size = peak("picture", path)
    assert outcome == "refused" and size < 300_000_000
