"""Sets whose declaration says all: HAM10000 and NIH ChestX-ray14, on small trees in their published form."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.image_files import write_picture

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError

SKIN, CHEST = dataset_specs()["ham10000"], dataset_specs()["chestxray14"]
DX = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def ham10000(root: Path, table: str = "HAM10000_metadata", delimiter: str = ",", parts: str = "part_{}") -> Path:
    head = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    rows = [head]
    for index in range(28):
        image, lesion = f"ISIC_{24306 + index:07d}", f"HAM_{index // 4:07d}{index % 4 // 2}"
        folder = f"HAM10000_images_{parts.format(1 + index % 2)}"
        write_picture(root / "ham10000" / folder / f"{image}.jpg", key=image, size=(60, 45))
        rows.append([lesion, image, DX[index // 4], "histo", "80.0", "male", "scalp", "vidir_modern"])
    masks = root / "ham10000" / "HAM10000_segmentations_lesion_tschandl"
    write_picture(masks / "ISIC_0024306_segmentation.png", size=(60, 45))
    (root / "ham10000" / table).write_text("\n".join(delimiter.join(row) for row in rows))
    return root


def by_group(data: Dataset) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for document in data.documents:
        groups.setdefault(document.group, set()).add(document.fold)
    return groups


@pytest.mark.parametrize(
    ("table", "delimiter", "parts"),
    [
        ("HAM10000_metadata", ",", "part_{}"),
        ("HAM10000_metadata.csv", ",", "part{}"),
        ("HAM10000_metadata.tab", "\t", "part_{}"),
    ],
)
def test_ham10000(tmp_path: Path, table: str, delimiter: str, parts: str) -> None:
    data = load_dataset(SKIN, root=ham10000(tmp_path, table, delimiter, parts))
    assert len(data.documents) == 28
    assert sorted({document.label for document in data.documents}) == sorted(SKIN.labels)
    first = data.documents[0]
    assert first.id.endswith("ISIC_0024306") and first.label == SKIN.labels[0] and first.group == "HAM_00000000"
    groups = by_group(data)
    assert len(groups) == 14 and all(len(folds) == 1 for folds in groups.values())
    assert {fold for folds in groups.values() for fold in folds} == {"train", "validation", "test"}


def test_ham10000_without_its_second_part(tmp_path: Path) -> None:
    ham10000(tmp_path)
    for path in (tmp_path / "ham10000" / "HAM10000_images_part_2").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"14 faults .*(\n.*)*'ISIC_0024307' to be a file below"):
        load_dataset(SKIN, root=tmp_path)
    assert len(load_dataset(SKIN, root=tmp_path, on_error="skip").documents) == 14


HEADS = {
    "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
}
FINDINGS = ("No Finding", "Cardiomegaly|Emphysema", "Effusion", "Pleural_Thickening|Mass|Hernia")


def chestxray14(root: Path, table: str = "Data_Entry_2017.csv", folder: str = "images_{:03d}/images") -> Path:
    top = root / "chestxray14"
    rows, lists = [HEADS[table]], {"train_val": [], "test": []}
    for patient in range(1, 13):
        for number in range(2):
            name = f"{patient:08d}_{number:03d}.png"
            write_picture(top / folder.format(1 + patient // 7) / name, key=name, size=(40, 40))
            end = "," if HEADS[table].endswith(",") else ""
            finding = FINDINGS[(patient + number) % 4]
            rows.append(f"{name},{finding},{number},{patient},58,M,PA,2682,2749,0.143,0.143{end}")
            lists["test" if patient > 9 else "train_val"].append(name)
    (top / table).write_text("\n".join(rows) + "\n")
    (top / "train_val_list.txt").write_text("\n".join(lists["train_val"]))
    (top / "test_list.txt").write_text("\r\n".join(lists["test"]) + "\r\n")
    return root


@pytest.mark.parametrize("table", HEADS)
@pytest.mark.parametrize("folder", ["images_{:03d}/images", "images_{:03d}", "images"])
def test_chestxray14(tmp_path: Path, table: str, folder: str) -> None:
    data = load_dataset(CHEST, root=chestxray14(tmp_path, table, folder))
    by_name = {document.id.rpartition("/")[2]: document for document in data.documents}
    assert len(by_name) == 24
    assert by_name["00000004_000"].label == ()
    assert by_name["00000001_000"].label == ("cardiomegaly", "emphysema")
    assert by_name["00000003_000"].label == ("a mass", "pleural thickening", "a hernia")
    assert {by_name[f"{patient:08d}_000"].group for patient in range(1, 13)} == {
        str(patient) for patient in range(1, 13)
    }
    test = {document.group for document in data.select(["test"])}
    assert test == {"10", "11", "12"}
    groups = by_group(data)
    assert all(len(folds) == 1 for folds in groups.values())
    assert 1 <= sum(folds == {"validation"} for folds in groups.values()) <= 3


def test_chestxray14_with_half_of_the_archives(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    for path in (tmp_path / "chestxray14" / "images_002" / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"00000007_000\.png"):
        load_dataset(CHEST, root=tmp_path)
    assert {document.fold for document in load_dataset(CHEST, root=tmp_path, on_error="skip").documents} == {
        "train",
        "validation",
    }


def test_an_image_in_both_lists_is_an_error(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    path = tmp_path / "chestxray14" / "test_list.txt"
    path.write_text(path.read_text() + "00000001_000.png\n")
    with pytest.raises(DataError, match=r"test_list\.txt, line 7: expected an image in one list"):
        load_dataset(CHEST, root=tmp_path)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    (tmp_path / "chestxray14" / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt: expected a list of images"):
        load_dataset(CHEST, root=tmp_path)


def test_no_finding_beside_a_finding_is_an_error(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    path = tmp_path / "chestxray14" / "Data_Entry_2017.csv"
    path.write_text(path.read_text().replace(",Effusion,", ",No Finding|Effusion,", 1))
    with pytest.raises(DataError, match="expected 'No Finding' alone in the cell"):
        load_dataset(CHEST, root=tmp_path)
