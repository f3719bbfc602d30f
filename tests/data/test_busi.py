"""The layout of BUSI: masks are no images, near-duplicates are groups, every fault is named."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import cut, picture, snapshot, write_picture

from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["busi"]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Folder of the class folders: eight images a class with masks, as in the published archive."""
    folder = tmp_path / "busi" / "Dataset_BUSI_with_GT"
    for label in SPEC.labels:
        for number in range(1, 9):
            write_picture(folder / label / f"{label} ({number}).png")
            Image.new("1", (24, 20)).save(folder / label / f"{label} ({number})_mask.png")
    Image.new("1", (24, 20)).save(folder / "benign" / "benign (4)_mask_1.png")
    return folder


def fault(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(SPEC, root=root)
    return str(caught.value)


def test_masks_and_litter_are_no_images(tmp_path: Path, classes: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._benign (1).png", "notes.txt"):
        (classes / "benign" / name).write_bytes(b"litter")
    (classes / "__MACOSX").mkdir()
    before = snapshot(tmp_path)
    data = load_dataset(SPEC, root=tmp_path)
    assert [document.id for document in data.documents] == sorted(
        f"{label} ({number})" for label in SPEC.labels for number in range(1, 9)
    )
    for document in data.documents:
        assert document.label == document.id.split()[0]
        assert document.group == document.id
    assert all(count > 0 for fold in FOLDS for count in data.counts()[fold].values())
    first = data.documents[0]
    assert data.image(first).mode == "RGB"
    assert data.image(first).convert("L").tobytes() == picture("benign/benign (1).png").tobytes()
    assert snapshot(tmp_path) == before


def test_class_folders_may_lie_in_the_folder_directly(tmp_path: Path, classes: Path) -> None:
    whole = load_dataset(SPEC, root=tmp_path)
    classes.rename(tmp_path / "unpacked")
    (tmp_path / "busi").rmdir()
    (tmp_path / "unpacked").rename(tmp_path / "busi")
    again = load_dataset(SPEC, root=tmp_path)
    assert again.fingerprint == whole.fingerprint
    assert [document.id for document in again.documents] == [document.id for document in whole.documents]


def test_duplicates_are_one_group_across_classes(tmp_path: Path, classes: Path) -> None:
    original = picture("lesion", (256, 256))
    original.save(classes / "malignant" / "malignant (20).png")
    original.convert("RGB").save(classes / "benign" / "benign (20).png")
    original.resize((128, 128)).save(classes / "normal" / "normal (20).png")
    flat = Image.new("L", (24, 20), 77)
    flat.save(classes / "normal" / "normal (30).png")
    flat.save(classes / "normal" / "normal (31).png")
    Image.new("L", (24, 20), 78).save(classes / "normal" / "normal (32).png")
    groups = {document.id: document.group for document in load_dataset(SPEC, root=tmp_path).documents}
    assert groups["malignant (20)"] == groups["normal (20)"] == groups["benign (20)"] == "benign (20)"
    assert groups["normal (30)"] == groups["normal (31)"] == "normal (30)" != groups["normal (32)"]
    assert len(set(groups.values())) == len(groups) - 3


def test_all_faults_are_in_one_error(tmp_path: Path, classes: Path) -> None:
    (classes / "benign" / "benign (1).png").write_bytes(b"")
    (classes / "benign" / "benign (2).png").write_text("an image, honestly")
    cut(classes / "malignant" / "malignant (3).png", 0.5)
    write_picture(classes / "malignant" / "malignant (4).jpg")
    write_picture(classes / "normal" / "scan.png")
    write_picture(classes / "normal" / "benign (9).png")
    write_picture(classes / "suspicious" / "suspicious (1).png")
    (classes / "normal" / "more").mkdir()
    before = snapshot(tmp_path)
    message = fault(tmp_path)
    assert "8 faults" in message.splitlines()[0]
    for path, reason in {
        "benign/benign (1).png": "0 bytes",
        "benign/benign (2).png": "not one of",
        "malignant/malignant (3).png": "truncated",
        "malignant/malignant (4).jpg": "2 files with one id",
        "normal/scan.png": 'a name like "normal (1).png"',
        "normal/benign (9).png": 'a name like "normal (1).png"',
        "suspicious": "unexpected class folder",
        "normal/more": "got a folder",
    }.items():
        assert any(str(classes / path) in line and reason in line for line in message.splitlines()), path
    assert SPEC.download in message
    assert snapshot(tmp_path) == before


def test_many_faults_are_counted_and_some_shown(tmp_path: Path, classes: Path) -> None:
    for number in range(100, 130):
        (classes / "benign" / f"benign ({number}).png").touch()
    message = fault(tmp_path)
    assert "30 faults" in message and "and 10 more" in message
    assert message.count("0 bytes") == 20


def test_empty_class_folder(tmp_path: Path, classes: Path) -> None:
    for path in (classes / "normal").iterdir():
        path.unlink()
    assert f"{classes / 'normal'}: expected images, got none" in fault(tmp_path)


def test_class_folder_with_masks_only(tmp_path: Path, classes: Path) -> None:
    for number in range(1, 9):
        (classes / "normal" / f"normal ({number}).png").unlink()
    assert "'normal'" in fault(tmp_path)


def test_empty_set_folder(tmp_path: Path) -> None:
    (tmp_path / "busi").mkdir()
    message = fault(tmp_path)
    assert all(f"{tmp_path / 'busi' / label}: expected a class folder" in message for label in SPEC.labels)


@pytest.mark.skipif("MEDMLLM_DATA" not in os.environ, reason="MEDMLLM_DATA is not set: no real BUSI images")
def test_real_images() -> None:
    data = load_dataset(SPEC)
    assert {label: sum(data.counts()[fold][label] for fold in FOLDS) for label in SPEC.labels}.keys() == set(
        SPEC.labels
    )
    folds = defaultdict(set)
    for document in data.documents:
        assert Path(document.image).stem == document.id
        assert "_mask" not in document.id
        folds[document.group].add(document.fold)
    assert all(len(fold) == 1 for fold in folds.values())
    # BUSI is known for its many near-duplicates, and for none that would chain through half of a class.
    largest = max(sum(document.group == group for document in data.documents) for group in folds)
    assert len(folds) < 0.9 * len(data.documents) and largest <= 10
    for label in SPEC.labels:
        total = sum(data.counts()[fold][label] for fold in FOLDS)
        assert abs(data.counts()["test"][label] / total - 0.2) < 0.03


def test_masks_of_all_lesions_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "busi" / "Dataset_BUSI_with_GT"
    for label in SPEC.labels:
        for number in range(1, 4):
            write_picture(folder / label / f"{label} ({number}).png", key=f"{label} {number}", size=(20, 10))
    for name, column in (("benign (1)_mask", 3), ("benign (1)_mask_1", 7), ("benign (2)_mask", 5)):
        mask = np.zeros((10, 20), np.uint8)
        mask[2:5, column] = 255
        Image.fromarray(mask).save(folder / "benign" / f"{name}.png")
    data = load_dataset(SPEC, root=tmp_path)
    by_id = {document.id: document for document in data.documents}
    result = data.mask(by_id["benign (1)"])
    assert result is not None and result.shape == (10, 20) and result.dtype == bool
    assert sorted(zip(*map(list, np.nonzero(result)), strict=True)) == [(r, c) for r in (2, 3, 4) for c in (3, 7)]
    assert int(data.mask(by_id["benign (2)"]).sum()) == 3  # type: ignore[union-attr]
    assert data.mask(by_id["normal (1)"]) is None
