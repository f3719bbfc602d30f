"""DICOM files that lie about themselves: refused by name, at once, and without memory for what they claim."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.dicom_files import (
    DEFLATED,
    JPEG_2000,
    JPEG_BASELINE,
    RLE,
    element,
    encapsulated,
    write_dicom,
)

from medmllm_plugins.data.readers.decode_limit import VARIABLE
from medmllm_plugins.data.readers.dicom import dicom_geometry, read_dicom_image
from medmllm_plugins.data.readers.dicom_kinds import kind_without_pictures
from medmllm_plugins.data.readers.image_reader import may_be_dicom
from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.errors import DataError

PIXELS = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)
Case = Callable[[Path], object]


def picture_bytes(form: str, size: tuple[int, int] = (16, 12), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, form)
    return buffer.getvalue()


def short(path: Path) -> None:
    write_dicom(path, PIXELS, extra={0x7FE00010: ("OW", PIXELS.tobytes()[:200])})


def long(path: Path) -> None:
    write_dicom(path, PIXELS, extra={0x00280011: ("US", 15)})


def tall(path: Path) -> None:
    write_dicom(path, PIXELS, extra={0x00280010: ("US", 30_000), 0x00280011: ("US", 30_000)})


def false_length(path: Path) -> None:
    write_dicom(path, PIXELS[:2, :2])
    content = path.read_bytes()
    path.write_bytes(content[:300] + struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 0xC8000000) + b"abcdefghi")


def false_length_in_a_sequence(path: Path) -> None:
    inner = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 0xC8000000)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item
    write_dicom(path, PIXELS)
    content = path.read_bytes()
    path.write_bytes(content.replace(element(0x00080060, "CS", "CT"), element(0x00080060, "CS", "CT") + sequence))


def deep(path: Path) -> None:
    write_dicom(path, PIXELS)
    content, start = path.read_bytes(), element(0x00080060, "CS", "CT")
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(content.replace(start, start + level * 5000))


def many(path: Path) -> None:
    write_dicom(path, PIXELS)
    content, start = path.read_bytes(), element(0x00080060, "CS", "CT")
    path.write_bytes(content.replace(start, start + element(0x00090010, "CS", "") * 3_000_000))


def deflated_tail(path: Path) -> None:
    write_dicom(path, PIXELS, syntax=DEFLATED)
    _repack(path, b"\0" * 40_000_000)


def deflated_pixels(path: Path) -> None:
    write_dicom(path, PIXELS, syntax=DEFLATED, extra={0x00280010: ("US", 65_535), 0x00280011: ("US", 16_000)})
    content = path.read_bytes()
    start = content.index(b"DICM") + 4 + 12 + struct.unpack_from("<I", content, 140)[0]
    body = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    body = body[: body.rindex(b"\xe0\x7f\x10\x00")] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 2_097_120_000)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(body) + b"".join(packer.compress(b"\0" * 1_000_000) for _ in range(40)) + packer.flush()
    path.write_bytes(content[:start] + packed)


def deflated_in_part(path: Path) -> None:
    write_dicom(path, PIXELS, syntax=DEFLATED)
    path.write_bytes(path.read_bytes()[:-20])


def _repack(path: Path, tail: bytes) -> None:
    content = path.read_bytes()
    start = content.index(b"DICM") + 4 + 12 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    body = body[: -len(PIXELS.tobytes()) - 12] + element(0x7FE00010, "OW", PIXELS.tobytes() + tail)
    path.write_bytes(content[:start] + packer.compress(body) + packer.flush())


def rle_tall(path: Path) -> None:
    segments = struct.pack("<16I", 2, 64, 70, *[0] * 13) + b"\x81\0" * 6
    big = {0x00280010: ("US", 30_000), 0x00280011: ("US", 8_000)}
    write_dicom(path, PIXELS, syntax=RLE, fragments=[segments], extra=big)


def rle_over(path: Path) -> None:
    segments = struct.pack("<16I", 2, 64, 64 + 2000, *[0] * 13) + b"\x81\0" * 2000
    write_dicom(path, PIXELS, syntax=RLE, fragments=[segments])


def jpeg_larger(path: Path) -> None:
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[picture_bytes("JPEG", (17, 12))])


def jpeg_tall(path: Path) -> None:
    stream = bytearray(picture_bytes("JPEG"))
    at = stream.index(b"\xff\xc0") + 5
    stream[at : at + 4] = struct.pack(">HH", 30_000, 8_000)
    big = {0x00280010: ("US", 30_000), 0x00280011: ("US", 8_000)}
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[bytes(stream)], extra=big)


def jpeg_in_colour(path: Path) -> None:
    stream = picture_bytes("JPEG", mode="RGB")
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[stream])


def jpeg_cut(path: Path) -> None:
    stream = picture_bytes("JPEG")
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[stream[:40]])


def jpeg_2000_tiles(path: Path) -> None:
    stream = bytearray(picture_bytes("JPEG2000"))
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">II", stream, at, 16_000, 12_000)
    struct.pack_into(">II", stream, at + 16, 1, 1)
    big = {0x00280010: ("US", 12_000), 0x00280011: ("US", 16_000)}
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_2000, fragments=[bytes(stream)], extra=big)


def frames_missing(path: Path) -> None:
    two = {0x00280008: ("IS", "3")}
    stream = picture_bytes("JPEG")
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[stream, stream], extra=two)


def fragment_beyond(path: Path) -> None:
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[picture_bytes("JPEG")])
    content = path.read_bytes()
    at = content.rindex(b"\xfe\xff\x00\xe0") + 4
    path.write_bytes(content[:at] + struct.pack("<I", 0xF0000000) + content[at + 4 :])


def no_delimiter(path: Path) -> None:
    write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[picture_bytes("JPEG")])
    path.write_bytes(path.read_bytes()[:-8])


def video(path: Path) -> None:
    write_dicom(path, PIXELS.astype(np.uint8), syntax="1.2.840.10008.1.2.4.102", fragments=[b"\0\0\0\1" * 9])


CASES: tuple[Case, ...] = (
    *(short, long, tall, false_length, false_length_in_a_sequence, deep, many, deflated_tail, deflated_pixels),
    *(deflated_in_part, rle_tall, rle_over, jpeg_larger, jpeg_tall, jpeg_in_colour, jpeg_cut, jpeg_2000_tiles),
    *(frames_missing, fragment_beyond, no_delimiter, video),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_files_that_lie_are_refused_at_once(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "lie.dcm"
    case(path)
    started = time.process_time()
    with pytest.raises(DataError, match=r"lie\.dcm: expected"):
        read_dicom_image(path)
    with pytest.raises(DataError, match=r"lie\.dcm: expected") as caught:
        read_volume(path)
    assert time.process_time() - started < 15  # reading what the header claims took 22 s and more
    assert "\n" not in str(caught.value)


def test_the_size_of_pixels_is_checked_from_the_header_alone(tmp_path: Path) -> None:
    for case in (short, long, tall, false_length):
        case(tmp_path / "lie.dcm")
        with pytest.raises(DataError):
            dicom_geometry(tmp_path / "lie.dcm")


def test_padding_to_an_even_length_is_no_fault(tmp_path: Path) -> None:
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    for padding in (b"", b"\0"):
        path = write_dicom(tmp_path / "odd.dcm", pixels, extra={0x7FE00010: ("OB", pixels.tobytes() + padding)})
        assert np.asarray(read_dicom_image(path)).shape == (3, 3, 3)
    path.write_bytes(path.read_bytes() + b"\0" * 1000)  # as some archives pad files
    assert np.asarray(read_dicom_image(path)).shape == (3, 3, 3)


def test_the_limit_of_decoded_data_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "scan.dcm", np.zeros((3, 600, 600), np.uint16), position=None)
    read_dicom_image(path)
    monkeypatch.setenv(VARIABLE, "500K")
    with pytest.raises(DataError, match=VARIABLE):
        read_dicom_image(path)


_LIMITED = """
import resource, sys
from pathlib import Path
from medmllm_plugins.data.readers.dicom import read_dicom_image
from medmllm_plugins.errors import DataError
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        read_dicom_image(path)
    except DataError:
        continue
    print("read", path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs: needs Linux")
def test_refusing_takes_no_memory(tmp_path: Path) -> None:
    cases = [case for case in CASES if case is not many]  # a file of 24 MB, walked in windows
    for case in cases:
        case(tmp_path / f"{case.__name__}.dcm")
    command = [sys.executable, "-c", _LIMITED, *map(str, sorted(tmp_path.iterdir()))]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (kilobytes,) = answer.stdout.split()
    assert int(kilobytes) < 150_000 and not answer.stderr


@pytest.mark.parametrize("form", ["native", "deflated", "rle", "jpeg"])
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, form: str) -> None:
    stream = picture_bytes("JPEG")
    rle = struct.pack("<16I", 2, 64, 264, *[0] * 13) + (b"\x7f" + b"a" * 128 + b"\x3f" + b"b" * 64 + b"\0" * 6) * 2
    path = tmp_path / "fuzzed.dcm"
    if form == "jpeg":
        write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[stream])
    else:
        syntax = {"native": "1.2.840.10008.1.2.1", "deflated": DEFLATED, "rle": RLE}[form]
        write_dicom(path, PIXELS, syntax=syntax, fragments=[rle] if form == "rle" else None)
    content = path.read_bytes()
    read_dicom_image(path)
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(content))] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
        path.write_bytes(damaged[: generator.choice((len(content), generator.randrange(len(content) + 1)))])
        try:
            read_dicom_image(path)
        except DataError as error:
            assert "fuzzed.dcm" in str(error)


@pytest.mark.parametrize("syntax", [DEFLATED, JPEG_BASELINE])
def test_compressed_bytes_are_bounded_too(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "sparse.dcm"
    if syntax == DEFLATED:
        write_dicom(path, PIXELS, syntax=DEFLATED)
        with path.open("r+b") as opened:
            opened.truncate(3 << 30)  # a hole: nothing is written
    else:
        write_dicom(path, PIXELS.astype(np.uint8), syntax=JPEG_BASELINE, fragments=[picture_bytes("JPEG")])
        content = path.read_bytes()
        at = content.rindex(b"\xfe\xff\x00\xe0") + 4
        path.write_bytes(content[:at] + struct.pack("<I", 3 << 30) + content[at + 4 : -8])
        with path.open("r+b") as opened:
            opened.seek(at + 4 + (3 << 30))
            opened.write(content[-8:])
    with pytest.raises(DataError, match=VARIABLE):
        read_dicom_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes: needs a platform that has them")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.dcm")
    os.mkfifo(tmp_path / "IM0001")
    assert not may_be_dicom(tmp_path / "IM0001")
    assert kind_without_pictures(tmp_path / "scan.dcm") is None
    with pytest.raises(DataError, match=r"scan\.dcm: expected a file"):
        read_dicom_image(tmp_path / "scan.dcm")


def test_a_table_of_offsets_that_lies_is_not_believed(tmp_path: Path) -> None:
    stream = picture_bytes("JPEG")
    path = write_dicom(
        tmp_path / "film.dcm",
        PIXELS.astype(np.uint8),
        syntax=JPEG_BASELINE,
        fragments=[stream, stream],
        extra={0x00280008: ("IS", "2")},
    )
    shown = np.asarray(read_dicom_image(path))
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00OB")
    for table in (struct.pack("<2I", 0, 7), struct.pack("<2I", 4_000_000_000, 0)):
        path.write_bytes(content[:start] + encapsulated([stream, stream], table))
        assert np.array_equal(np.asarray(read_dicom_image(path)), shown)
