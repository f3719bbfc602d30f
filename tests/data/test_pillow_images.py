"""Reading images: every mode becomes the right RGB, every damaged file is an error."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile
from support.image_files import cut, picture, write_picture

from medmllm_plugins.data.core.duplicates import join_groups, near_duplicates
from medmllm_plugins.data.readers.decode_limit import VARIABLE
from medmllm_plugins.data.readers.file_facts import picture_facts, scan_files, thumbnail
from medmllm_plugins.data.readers.pillow_images import read_rgb, to_rgb
from medmllm_plugins.errors import DataError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


def image_faults(paths: list[Path]) -> list[str]:
    return scan_files(paths, lambda path: picture_facts(read_rgb(path)))[1]


def grey_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


@pytest.fixture(params=[False, True], ids=["strict", "host-flag"])
def truncation_flag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """``LOAD_TRUNCATED_IMAGES`` as it is by default and as the host sets it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return bool(request.param)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@settings(max_examples=40)
@given(values=hnp.arrays(np.uint8, SHAPES))
def test_grey_is_repeated(scratch: Path, values: np.ndarray) -> None:
    path = scratch / "grey.png"
    Image.fromarray(values).save(path)
    image = read_rgb(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), grey_rgb(values))


@settings(max_examples=40)
@given(values=hnp.arrays(np.uint8, st.tuples(st.integers(1, 16), st.integers(1, 16), st.just(3))))
def test_rgb_is_kept(scratch: Path, values: np.ndarray) -> None:
    path = scratch / "rgb.png"
    Image.fromarray(values).save(path)
    assert np.array_equal(np.asarray(read_rgb(path)), values)


@settings(max_examples=40)
@given(
    values=hnp.arrays(np.uint8, st.tuples(st.integers(1, 16), st.integers(1, 16), st.sampled_from([2, 4]))),
)
def test_alpha_is_composited_on_black(scratch: Path, values: np.ndarray) -> None:
    path = scratch / "alpha.png"
    Image.fromarray(values).save(path)
    colour, alpha = values[..., :-1].astype(float), values[..., -1:].astype(float)
    expected = np.broadcast_to(colour * alpha / 255, (*values.shape[:2], 3))
    # Pillow composites in fixed point: one grey level off the exact product at most.
    assert np.abs(np.asarray(read_rgb(path), dtype=float) - expected).max() <= 1


@settings(max_examples=40)
@given(values=hnp.arrays(np.uint16, SHAPES))
def test_16_bit_is_scaled_by_its_range(scratch: Path, values: np.ndarray) -> None:
    path = scratch / "wide.png"
    Image.fromarray(values).save(path)
    low, high = int(values.min()), int(values.max())
    exact = (values.astype(float) - low) * 255 / max(high - low, 1)
    shown = np.asarray(read_rgb(path), dtype=float)
    assert np.abs(shown - grey_rgb(exact)).max() <= 0.5 + 1e-9
    assert shown.min() == 0 and shown.max() == (255 if high > low else 0)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_is_scaled_by_its_range(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.array([[-1000, 0], [500, 3000]], dtype=dtype)).save(tmp_path / "ct.tiff")
    assert np.asarray(read_rgb(tmp_path / "ct.tiff"))[..., 0].tolist() == [[0, 64], [96, 255]]


def test_float_with_nan_is_a_fault(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 0], [1, 2]], dtype=np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(DataError, match=r"nan\.tiff.*NaN"):
        read_rgb(tmp_path / "nan.tiff")


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "bits.png")
    assert np.asarray(read_rgb(tmp_path / "bits.png"))[..., 1].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize(("transparency", "second"), [(None, (0, 200, 0)), (1, (0, 0, 0))])
def test_palette_is_looked_up(tmp_path: Path, transparency: int | None, second: tuple[int, int, int]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([100, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", **({} if transparency is None else {"transparency": transparency}))
    shown = read_rgb(tmp_path / "palette.png")
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(100, 0, 0), second]


def test_colour_key_is_transparent(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (50, 60, 70))
    image.save(tmp_path / "key.png", transparency=(9, 8, 7))
    shown = read_rgb(tmp_path / "key.png")
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (50, 60, 70)]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.tiff")
    assert read_rgb(tmp_path / "print.tiff").getpixel((8, 8)) == (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned clockwise by 90 degrees
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 16))
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    shown = read_rgb(tmp_path / "turned.jpg")
    assert shown.size == (16, 32)
    assert shown.getpixel((8, 4))[0] > 200 > 50 > shown.getpixel((8, 28))[0]


def test_wide_image_is_turned_too() -> None:
    image = Image.fromarray(np.array([[0, 1000]], dtype=np.uint16))
    image.getexif()[0x0112] = 3
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp", "jp2"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"picture.{suffix}")
    assert read_rgb(path).size == (24, 20)


@pytest.mark.usefixtures("truncation_flag")
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 20, 13, 12, 4, 1])
def test_cut_png_is_found(tmp_path: Path, keep: float | int) -> None:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    read_rgb(path)
    cut(path, keep)
    with pytest.raises(DataError, match=r"noise\.png"):
        read_rgb(path)
    assert len(image_faults([path])) == 1


@pytest.mark.usefixtures("truncation_flag")
@pytest.mark.parametrize("suffix", ["jpg", "bmp", "gif", "tiff", "webp"])
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
def test_cut_file_is_found(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    read_rgb(path)
    cut(path, keep)
    with pytest.raises(DataError, match="noise"):
        read_rgb(path)


@pytest.mark.usefixtures("truncation_flag")
def test_flipped_byte_in_png_pixels_is_found(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "flipped.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum"):
        read_rgb(path)


def test_truncation_flag_is_left_as_it_was(tmp_path: Path, truncation_flag: bool) -> None:
    good = [write_picture(tmp_path / f"{index}.png", size=(200, 200)) for index in range(20)]
    bad = write_picture(tmp_path / "bad.png", size=(200, 200))
    cut(bad, 0.5)
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(image_faults([*good, bad]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(faults) for faults in results] == [1] * 4
    assert ImageFile.LOAD_TRUNCATED_IMAGES is truncation_flag


def test_faults_name_every_bad_file_in_order(tmp_path: Path) -> None:
    good = write_picture(tmp_path / "good.png")
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("not an image")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    half = write_picture(tmp_path / "half.jpg")
    cut(half, 0.5)
    bad = [empty, text, tmp_path / "missing.png", folder, half]
    faults = image_faults([good, *bad])
    assert [fault.partition(": ")[0] for fault in faults] == [str(path) for path in bad]
    assert "0 bytes" in faults[0] and "PNG" in faults[1]
    assert image_faults([good]) == [] == image_faults([])


def test_postscript_under_the_name_of_a_png_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "script.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not one of"):
        read_rgb(path)


def test_too_many_pixels_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_picture(tmp_path / "bomb.png", size=(100, 100))
    monkeypatch.setenv(VARIABLE, "59999")
    with pytest.raises(DataError, match=r"bomb\.png: expected at most 59,999 bytes of decoded data"):
        read_rgb(path)
    monkeypatch.setenv(VARIABLE, "60000")
    assert read_rgb(path).size == (100, 100)


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_decode_or_are_faults(scratch: Path, data: st.DataObject) -> None:
    """Whatever bytes are there, the answer is an RGB image or a DataError that names the file."""
    buffer = io.BytesIO()
    picture("fuzz").save(buffer, format=data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"])))
    content = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = scratch / "fuzz.bin"
    path.write_bytes(content)
    try:
        assert read_rgb(path).mode == "RGB"
    except DataError as error:
        assert str(path) in str(error)


def test_near_duplicates_are_pairs_of_one_picture() -> None:
    first, other = picture("first", (256, 200)), picture("other", (256, 200))
    bright = Image.fromarray((np.asarray(first) * 0.9 + 10).astype(np.uint8))
    buffer = io.BytesIO()
    first.resize((200, 160)).save(buffer, format="JPEG", quality=60)
    flat = Image.new("L", (50, 50), 128)
    pictures = [other, first, flat, Image.open(buffer), bright, flat]
    pairs = near_duplicates(np.stack([thumbnail(image) for image in pictures]))
    assert pairs.tolist() == [[1, 3], [1, 4], [3, 4]]


def test_near_duplicates_cross_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmllm_plugins.data.core.duplicates._BLOCK", 2)
    thumbnails = np.stack([thumbnail(picture(key, (64, 64))) for key in "abcdeab"])
    assert near_duplicates(thumbnails).tolist() == [[0, 5], [1, 6]]
    assert near_duplicates(thumbnails[:1]).shape == (0, 2)


def test_thumbnail_is_the_mean_of_blocks() -> None:
    values = np.random.default_rng(1).integers(0, 256, (64, 96), dtype=np.uint8)
    expected = values.reshape(32, 2, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(Image.fromarray(values)), expected, rtol=1e-5)


@settings(max_examples=100)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n),
    st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12),
)))  # fmt: skip
def test_joined_groups_are_connected_components(case: tuple[list[str], list[tuple[int, int]]]) -> None:
    groups, pairs = case
    joined = join_groups(groups, pairs)
    # Reference: repeat "take the smaller name" until nothing changes.
    names = list(groups)
    for _ in range(len(names) ** 2):
        links = pairs + [(i, groups.index(group)) for i, group in enumerate(groups)]
        for i, j in links:
            names[i] = names[j] = min(names[i], names[j])
    assert joined == names
