"""MedMNIST files written in the published format, and the real PneumoniaMNIST where it is at hand."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.layouts import medmnist
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.data.readers.decode_limit import VARIABLE
from medmllm_plugins.errors import DataError

SPECS = {name: spec for name, spec in dataset_specs().items() if spec.layout == "medmnist"}
COLOUR = {"pathmnist", "dermamnist", "retinamnist", "bloodmnist"}
COUNTS = {"train": 24, "val": 12, "test": 16}


def arrays(spec: DatasetSpec, side: int = 28) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (side,) * spec.dimensions + ((3,) if spec.name in COLOUR else ())
    by_name: dict[str, np.ndarray] = {}
    for split, n in COUNTS.items():
        by_name[f"{split}_images"] = generator.integers(0, 256, (n, *shape), dtype=np.uint8)
        if spec.kind == "multilabel":
            by_name[f"{split}_labels"] = generator.integers(0, 2, (n, len(spec.labels)))
        else:
            by_name[f"{split}_labels"] = (np.arange(n) % len(spec.labels)).astype(np.uint8)[:, None]
    return by_name


def write(root: Path, spec: DatasetSpec, side: int = 28, save: Callable[..., None] = np.savez_compressed) -> Path:
    path = root / "medmnist" / (f"{spec.name}.npz" if side == 28 else f"{spec.name}_{side}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, **arrays(spec, side))
    return path


def test_all_eighteen_sets_are_declared() -> None:
    assert len(SPECS) == 18
    assert sum(spec.dimensions == 3 for spec in SPECS.values()) == 6
    assert [name for name, spec in SPECS.items() if spec.kind == "multilabel"] == ["chestmnist"]
    assert [name for name, spec in SPECS.items() if spec.kind == "ordinal"] == ["retinamnist"]
    assert SPECS["breastmnist"].labels[0] == SPECS["breastmnist"].positive == "malignant"
    # The order of organs differs between 2D and 3D.
    assert SPECS["organamnist"].labels[0] == "bladder" and SPECS["organmnist3d"].labels[0] == "liver"


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_set_reads_its_own_format(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    write(tmp_path, spec)
    data = load_dataset(spec, root=tmp_path)
    assert {fold: sum(d.fold == fold for d in data.documents) for fold in ("train", "validation", "test")} == {
        "train": 24,
        "validation": 12,
        "test": 16,
    }
    stored = arrays(spec)
    document = data.select(["test"])[5]
    assert document.id == "test/000005"
    if spec.kind == "multilabel":
        expected = tuple(label for label, there in zip(spec.labels, stored["test_labels"][5], strict=True) if there)
        assert document.label == expected
    else:
        assert document.label == spec.labels[int(stored["test_labels"][5, 0])]
    if spec.dimensions == 3:
        assert np.array_equal(data.volume(document).voxels, stored["test_images"][5].astype(np.float32))
    else:
        pixels = np.asarray(data.image(document))
        wanted = stored["test_images"][5]
        assert np.array_equal(pixels, wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2))


def with_size(spec: DatasetSpec, size: int) -> DatasetSpec:

    return spec.model_copy(update={"options": {"size": size}})


def test_sizes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = SPECS["breastmnist"]
    write(tmp_path, spec, 28)
    write(tmp_path, spec, 64)
    data = load_dataset(spec, root=tmp_path)
    assert data.image(data.documents[0]).size == (64, 64)  # the largest there is, and said so
    assert "breastmnist_224.npz is not there; breastmnist_64.npz is used" in caplog.text
    small = load_dataset(with_size(spec, 28), root=tmp_path)
    assert small.image(small.documents[0]).size == (28, 28) and small.fingerprint != data.fingerprint
    with pytest.raises(DataError, match=r"breastmnist_128\.npz, got breastmnist\.npz, breastmnist_64\.npz"):
        load_dataset(with_size(spec, 128), root=tmp_path)
    with pytest.raises(DataError, match=r"one of \[28, 64\], got 224"):
        load_dataset(with_size(SPECS["organmnist3d"], 224), root=tmp_path)


def test_a_shared_folder_holds_only_the_sets_whose_files_are_there(tmp_path: Path) -> None:
    path = write(tmp_path, SPECS["breastmnist"], 64)
    reader = medmnist.MedMNIST()
    assert reader.is_there(SPECS["breastmnist"], path.parent)
    assert not reader.is_there(SPECS["bloodmnist"], path.parent)


def test_what_is_stored_is_mapped(tmp_path: Path) -> None:
    spec = SPECS["bloodmnist"]
    path = write(tmp_path, spec, save=np.savez)
    data = load_dataset(spec, root=tmp_path)
    members = medmnist._members(path)
    assert isinstance(members["test_images"], np.memmap)
    assert np.array_equal(members["test_images"], arrays(spec)["test_images"])
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(data.image, data.documents * 4))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(images, images[len(data.documents) :], strict=False))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    spec = SPECS["retinamnist"]
    good = arrays(spec)
    faults = {
        "labels from 0 to 4": {"test_labels": good["test_labels"] + 5},
        "8-bit images": {"val_images": good["val_images"].astype(np.float32)},
        r"\[24, 1\]": {"train_labels": good["train_labels"][:-1]},
        "whole numbers": {"train_labels": good["train_labels"].astype(np.float32)},
        "none called": {"test_images": None},
    }
    for says, changes in faults.items():
        path = write(tmp_path, spec)
        np.savez_compressed(path, **{k: v for k, v in {**good, **changes}.items() if v is not None})
        with pytest.raises(DataError, match=says) as caught:
            load_dataset(spec, root=tmp_path)
        assert "retinamnist.npz" in str(caught.value)


def test_objects_are_never_unpacked(tmp_path: Path) -> None:
    spec = SPECS["retinamnist"]
    path = write(tmp_path, spec)
    np.savez(path, **{**arrays(spec), "test_labels": np.array([{"a": 1}] * 16, dtype=object)})
    with pytest.raises(DataError, match="test_labels"):
        load_dataset(spec, root=tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_inside_the_test_images_is_found(tmp_path: Path, save: Callable[..., None]) -> None:
    spec = SPECS["bloodmnist"]
    path = write(tmp_path, spec, save=save)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("test_images.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + info.compress_size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bloodmnist\.npz.*test_images"):
        load_dataset(spec, root=tmp_path)


@settings(max_examples=40)
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_an_error(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    root = tmp_path_factory.mktemp("cut")
    path = write(root, SPECS["pneumoniamnist"])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz"):
        load_dataset(SPECS["pneumoniamnist"], root=root)


def test_the_real_pneumoniamnist() -> None:
    root = Path(os.environ.get("MEDMLLM_DATA", ""))
    if not (root / "medmnist" / "pneumoniamnist.npz").is_file():
        pytest.skip("MEDMLLM_DATA holds no medmnist/pneumoniamnist.npz")
    data = load_dataset(SPECS["pneumoniamnist"], root=root)
    assert data.counts()["test"] == {"normal": 234, "pneumonia": 390}
    assert data.image(data.select(["test"])[0]).mode == "RGB"


def member(content: bytes, name: str, archive: zipfile.ZipFile) -> None:
    archive.writestr(f"{name}.npy", content, zipfile.ZIP_DEFLATED)


def npy(array: np.ndarray, **header: object) -> bytes:
    """An array in NumPy's format, with fields of the header replaced."""
    buffer = io.BytesIO()
    stated = {"shape": array.shape, "fortran_order": False, "descr": array.dtype.str, **header}
    np.lib.format.write_array_header_2_0(buffer, stated)
    return buffer.getvalue() + array.tobytes()


def rewrite(path: Path, spec: DatasetSpec, **changes: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays(spec).items():
            member(changes.get(name, npy(array)), name, archive)


@pytest.mark.parametrize("name", ["test_images", "test_labels", "train_images"])
@pytest.mark.parametrize("more", [1, 60_000_000])
def test_a_member_holds_what_its_header_promises(tmp_path: Path, name: str, more: int) -> None:
    spec = SPECS["retinamnist"]
    path = write(tmp_path, spec)
    rewrite(path, spec, **{name: npy(arrays(spec)[name]) + bytes(more)})
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"retinamnist\.npz: expected the array {name}, got .*bytes by its header"):
        load_dataset(spec, root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_member_whose_length_the_archive_hides(tmp_path: Path) -> None:
    """The stream goes on for 40 MB behind what both headers promise; no more than that is unpacked."""
    spec = SPECS["retinamnist"]
    path = write(tmp_path, spec)
    good = npy(arrays(spec)["test_labels"])
    rewrite(path, spec, test_labels=good + bytes(40_000_000))
    content = path.read_bytes()
    for old, new in (
        (len(good) + 40_000_000, len(good)),
        (zlib.crc32(good + bytes(40_000_000)), zlib.crc32(good)),
    ):
        assert content.count(old.to_bytes(4, "little")) == 2
        content = content.replace(old.to_bytes(4, "little"), new.to_bytes(4, "little"))
    path.write_bytes(content)
    tracemalloc.start()
    load_dataset(spec, root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x93NUMPY\x02\0" + (50_000_000).to_bytes(4, "little") + bytes(50_000_000), "too long"),
        (npy(np.zeros((16, 28, 28, 3), np.uint8), shape=(10**9, 28, 28, 3)), "bytes by its header"),
        (npy(np.zeros((16, 28, 28, 3), np.uint8), shape=(16, 28, 28, -3)), "header|below 0"),
        (npy(np.zeros((16, 28, 28, 3), np.uint8), descr="|V2147483647"), "bytes by its header"),
        (b"", "no NumPy header"),
    ],
)
def test_headers_of_members_that_lie(tmp_path: Path, content: bytes, says: str) -> None:
    spec = SPECS["retinamnist"]
    path = write(tmp_path, spec)
    rewrite(path, spec, test_images=content)
    with pytest.raises(DataError, match=rf"retinamnist\.npz: expected the array test_images, got .*({says})"):
        load_dataset(spec, root=tmp_path)


def test_an_archive_of_too_many_members(tmp_path: Path) -> None:
    spec = SPECS["retinamnist"]
    path = write(tmp_path, spec)
    with zipfile.ZipFile(path, "a") as archive:
        for index in range(12_000):
            archive.writestr(f"{index:060d}", b"")
    with pytest.raises(DataError, match=r"retinamnist\.npz: expected a whole npz file, got .*directory of"):
        load_dataset(spec, root=tmp_path)


def test_a_large_packed_array_is_unpacked_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["bloodmnist"]
    write(tmp_path, spec)
    wanted = arrays(spec)
    monkeypatch.setattr("medmllm_plugins.data.readers.zip_members._BLOCK", 5 * 28 * 28 * 3)
    monkeypatch.setenv(VARIABLE, "128K")  # an eighth is less than any of the three arrays of images
    data = load_dataset(spec, root=tmp_path)
    rows = [document for document in data.documents if document.fold == "train"]
    for order in (range(24), reversed(range(24)), [23, 0, 12, 0]):
        for index in order:
            assert np.array_equal(np.asarray(data.image(rows[index])), wanted["train_images"][index])
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(data.image, rows))
    assert all(
        np.array_equal(np.asarray(image), row) for image, row in zip(images, wanted["train_images"], strict=True)
    )
