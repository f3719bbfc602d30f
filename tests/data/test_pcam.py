"""PatchCamelyon: HDF5 files as published, groups by slide, and damaged files."""

from __future__ import annotations

import builtins
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from medmllm_plugins.data.layouts.pcam import _opened
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["pcam"]
SIZES = {"train": 40, "valid": 12, "test": 16}


def pixels(split: str) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, (SIZES[split], 96, 96, 3), dtype=np.uint8)


def write(root: Path, *, meta: bool = True) -> Path:
    folder = root / "pcam"
    folder.mkdir(exist_ok=True)
    for split, count in SIZES.items():
        stem = folder / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=pixels(split), chunks=(8, 96, 96, 3), compression="gzip")
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file.create_dataset("y", data=(np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1))
        if meta:
            rows = [",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"]
            rows += [
                f"{i},100,200,{bool(i % 2)},{bool(i % 2)},camelyon16_{split}_normal_{i // 4:03d}" for i in range(count)
            ]
            Path(f"{stem}_meta.csv").write_text("\n".join(rows) + "\n")
    return root


def stem(root: Path, rest: str) -> Path:
    return root / "pcam" / f"camelyonpatch_level_2_split_{rest}"


def test_images_labels_and_slides(tmp_path: Path) -> None:
    data = load_dataset(SPEC, root=write(tmp_path))
    assert {fold: sum(row.values()) for fold, row in data.counts().items()} == {
        "train": 40,
        "validation": 12,
        "test": 16,
    }
    by_name = {document.id: document for document in data.documents}
    document = by_name["test/000005"]
    assert document.label == "tumor tissue" and document.group == "test/camelyon16_test_normal_001"
    assert np.array_equal(np.asarray(data.image(document)), pixels("test")[5])
    assert len({document.group for document in data.documents}) == 10 + 3 + 4


def test_without_meta_files_every_patch_stands_alone(tmp_path: Path) -> None:
    data = load_dataset(SPEC, root=write(tmp_path, meta=False))
    assert all(document.group == document.id for document in data.documents)


def test_the_fingerprint_follows_pixels_and_labels(tmp_path: Path) -> None:
    before = load_dataset(SPEC, root=write(tmp_path)).fingerprint
    changed = pixels("test")
    changed[3, 4, 5, 0] ^= 1
    path = stem(tmp_path, "test_x.h5")
    path.unlink()  # the reader holds the old one open
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=changed)
    assert load_dataset(SPEC, root=tmp_path).fingerprint != before


def damage(path: Path, what: str) -> None:
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("no HDF5")
    elif what == "other key":
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=pixels("test"))
    elif what == "fewer":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=pixels("test")[:-1])
    elif what == "floats":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=pixels("test").astype(np.float32))
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("what", ["cut", "empty", "text", "other key", "fewer", "floats", "garbled"])
def test_damaged_images(tmp_path: Path, what: str) -> None:
    path = stem(write(tmp_path), "test_x.h5")
    damage(path, what)
    with pytest.raises(DataError, match=r"test_x\.h5: expected .*get the file again"):
        load_dataset(SPEC, root=tmp_path)


def test_labels_that_are_none(tmp_path: Path) -> None:
    path = stem(write(tmp_path), "test_y.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("y", data=np.full((16, 1, 1, 1), 2, np.uint8))
    with pytest.raises(DataError, match="expected labels 0 and 1"):
        load_dataset(SPEC, root=tmp_path)


def test_files_that_are_still_packed(tmp_path: Path) -> None:
    path = stem(write(tmp_path), "valid_x.h5")
    path.rename(path.with_name(f"{path.name}.gz"))
    with pytest.raises(DataError, match=r"got only camelyonpatch_level_2_split_valid_x\.h5\.gz; gunzip it"):
        load_dataset(SPEC, root=tmp_path)


def test_a_meta_file_of_another_length(tmp_path: Path) -> None:
    path = stem(write(tmp_path), "test_meta.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="expected 16 rows, one for each image, got 15"):
        load_dataset(SPEC, root=tmp_path)


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    _opened.cache_clear()
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'medmllm-plugins\[pcam\]'"):
        load_dataset(SPEC, root=tmp_path)


def rewrite(root: Path, name: str, **options: Any) -> Path:
    path = stem(root, name)
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=pixels("test"), **options)
    return path


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunks", [(8, 96, 96, 3), (5, 50, 96, 2), (16, 96, 96, 3), (1, 96, 96, 3)])
def test_chunks_are_unpacked_as_hdf5_does(tmp_path: Path, chunks: tuple[int, ...], shuffle: bool) -> None:
    rewrite(write(tmp_path), "test_x.h5", chunks=chunks, compression="gzip", shuffle=shuffle)
    data = load_dataset(SPEC, root=tmp_path)
    for document in data.select(["test"]):
        index = int(document.id.partition("/")[2])
        assert np.array_equal(np.asarray(data.image(document)), pixels("test")[index])


def test_shuffled_labels_of_eight_bytes(tmp_path: Path) -> None:
    path = stem(write(tmp_path), "test_y.h5")
    path.unlink()
    labels = (np.arange(16) % 2).astype(">i8").reshape(-1, 1, 1, 1)
    with h5py.File(path, "w") as file:
        file.create_dataset("y", data=labels, chunks=(7, 1, 1, 1), compression="gzip", shuffle=True)
    with pytest.raises(DataError, match=r"got .*same_kind"):
        load_dataset(SPEC, root=tmp_path)


def test_a_chunk_that_holds_more_than_its_shape(tmp_path: Path) -> None:
    path = rewrite(write(tmp_path), "test_x.h5", chunks=(8, 96, 96, 3), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["x"].id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(40_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"test_x\.h5: .*longer than its header states"):
        load_dataset(SPEC, root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("options", [{"compression": "lzf"}, {"fletcher32": True}, {"scaleoffset": 4}])
def test_filters_that_are_not_gzip(tmp_path: Path, options: dict[str, Any]) -> None:
    rewrite(write(tmp_path), "test_x.h5", chunks=(8, 96, 96, 3), **options)
    with pytest.raises(DataError, match=r"test_x\.h5: .*HDF5 filters"):
        load_dataset(SPEC, root=tmp_path)


@pytest.mark.parametrize("how", ["external link", "soft link", "external data", "virtual"])
def test_data_in_other_files_are_not_read(tmp_path: Path, how: str) -> None:
    path = stem(write(tmp_path), "test_x.h5")
    other = tmp_path / "other.h5"
    path.rename(other)
    shape = (16, 96, 96, 3)
    with h5py.File(path, "w") as file:
        if how == "external link":
            file["x"] = h5py.ExternalLink(str(other), "x")
        elif how == "soft link":
            file["x"] = h5py.SoftLink("/y")
        elif how == "external data":
            file.create_dataset("x", shape, np.uint8, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, np.uint8)
            layout[...] = h5py.VirtualSource(str(other), "x", shape)
            file.create_virtual_dataset("x", layout)
    with pytest.raises(DataError, match=r"test_x\.h5: expected a whole HDF5 file, got .*(other files|in this file)"):
        load_dataset(SPEC, root=tmp_path)


@pytest.mark.parametrize("count", [10**7, 10**12])
def test_more_labels_than_fit_into_memory(tmp_path: Path, count: int) -> None:
    path = stem(write(tmp_path), "test_y.h5")
    path.unlink()
    with h5py.File(path, "w") as file:  # HDF5 writes nothing of what is never set
        file.create_dataset("y", (count, 1, 1, 1), np.uint8, chunks=(1000, 1, 1, 1), compression="gzip")
    with pytest.raises(DataError, match=r"test_y\.h5: expected at most 536,870,912 bytes"):
        load_dataset(SPEC, root=tmp_path)
