"""The Kermany chest X-rays: both releases, patients by pool, and the regrouped validation fold."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.image_files import cut, write_picture

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["chest_xray"]


def write(root: Path, names: dict[str, list[str]]) -> Path:
    for folder, stems in names.items():
        for stem in stems:
            write_picture(root / "chest_xray" / folder / f"{stem}.jpeg", key=f"{folder}/{stem}", size=(32, 24))
    return root


def kaggle(root: Path) -> Path:
    return write(
        root,
        {
            "train/NORMAL": [f"IM-{100 + i:04d}-0001" for i in range(8)] + ["NORMAL2-IM-1427-0001"],
            "train/PNEUMONIA": [f"person{i}_bacteria_{2 * i + j}" for i in range(6) for j in range(2)],
            "val/NORMAL": ["NORMAL2-IM-1427-0002"],
            "val/PNEUMONIA": ["person1946_bacteria_4874"],
            "test/NORMAL": ["IM-0100-0001", "IM-0003-0001"],
            "test/PNEUMONIA": ["person1_virus_6", "person1_virus_7"],
        },
    )


def mendeley(root: Path) -> Path:
    return write(
        root,
        {
            "train/NORMAL": [f"NORMAL-{1000 + i}-{j:04d}" for i in range(5) for j in range(2)],
            "train/PNEUMONIA": [f"{kind}-{2000 + i}-0001" for kind in ("BACTERIA", "VIRUS") for i in range(4)],
            "test/NORMAL": ["NORMAL-1000-0001"],
            "test/PNEUMONIA": ["BACTERIA-2000-0001"],
        },
    )


def groups(data: Dataset) -> dict[str, str]:
    return {document.id: document.group for document in data.documents}


def test_the_release_with_a_validation_folder(tmp_path: Path) -> None:
    data = load_dataset(SPEC, root=kaggle(tmp_path))
    assert len(data.documents) == 27
    test = {document.id for document in data.select(["test"])}
    assert test == {
        "test/NORMAL/IM-0100-0001",
        "test/NORMAL/IM-0003-0001",
        "test/PNEUMONIA/person1_virus_6",
        "test/PNEUMONIA/person1_virus_7",
    }
    of = groups(data)
    assert of["train/NORMAL/NORMAL2-IM-1427-0001"] == of["val/NORMAL/NORMAL2-IM-1427-0002"]
    assert of["train/PNEUMONIA/person1_bacteria_2"] == of["train/PNEUMONIA/person1_bacteria_3"]
    # Numbers begin anew in test: these are other children.
    assert of["test/NORMAL/IM-0100-0001"] != of["train/NORMAL/IM-0100-0001"]
    assert of["test/PNEUMONIA/person1_virus_6"] != of["train/PNEUMONIA/person1_bacteria_2"]
    folds = {}
    for document in data.documents:
        assert folds.setdefault(document.group, document.fold) == document.fold
    assert {label for document in data.select(["validation"]) for label in document.labels} == {"normal", "pneumonia"}
    assert 2 <= len(data.select(["validation"])) <= 8


def test_the_release_without_one(tmp_path: Path) -> None:
    data = load_dataset(SPEC, root=mendeley(tmp_path))
    of = groups(data)
    assert of["train/NORMAL/NORMAL-1000-0000"] == of["train/NORMAL/NORMAL-1000-0001"]
    assert of["train/PNEUMONIA/BACTERIA-2000-0001"] != of["train/PNEUMONIA/VIRUS-2000-0001"]
    assert data.counts()["test"] == {"normal": 1, "pneumonia": 1}
    assert data.image(data.documents[0]).mode == "RGB"


def test_an_archive_in_a_folder_of_its_own_name(tmp_path: Path) -> None:
    whole = load_dataset(SPEC, root=kaggle(tmp_path / "flat"))
    kaggle(tmp_path / "nested" / "chest_xray")
    (tmp_path / "nested" / "chest_xray" / "__MACOSX").mkdir()
    nested = load_dataset(SPEC, root=tmp_path / "nested")
    assert nested.folds_hash == whole.folds_hash and nested.fingerprint == whole.fingerprint


def test_faults_are_listed_together(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    top = root / "chest_xray"
    cut(top / "train" / "NORMAL" / "IM-0101-0001.jpeg", 0.4)
    (top / "test" / "NORMAL" / "IM-0003-0001.jpeg").write_bytes(b"")
    (top / "train" / "PNEUMONIA" / "notes.png").write_text("no image")
    write_picture(top / "train" / "PNEUMONIA" / "somebody.jpeg")
    write_picture(top / "train" / "COVID" / "IM-0001-0001.jpeg")
    with pytest.raises(DataError) as caught:
        load_dataset(SPEC, root=root)
    message = str(caught.value)
    for name in ("IM-0101-0001.jpeg", "IM-0003-0001.jpeg", "notes.png", "somebody.jpeg", "COVID"):
        assert name in message


def test_files_that_cannot_be_read_may_be_skipped(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    cut(root / "chest_xray" / "train" / "NORMAL" / "IM-0101-0001.jpeg", 0.4)
    data = load_dataset(SPEC, root=root, on_error="skip")
    assert len(data.documents) == 26 and len(data.skipped) == 1 and "IM-0101-0001.jpeg" in data.skipped[0]


@pytest.mark.parametrize("missing", ["train", "test", "train/NORMAL"])
def test_a_missing_folder_is_named(tmp_path: Path, missing: str) -> None:
    import shutil

    shutil.rmtree(kaggle(tmp_path) / "chest_xray" / missing)
    with pytest.raises(DataError, match=missing):
        load_dataset(SPEC, root=tmp_path)
