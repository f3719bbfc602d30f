"""A user's own images: what table or folders say, and everything that can be wrong with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.dicom_files import write_dicom, write_series
from support.image_files import cut, picture, write_picture
from support.own_data import table_spec

from medmllm_plugins.data.core import fold_manifest
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError

COLUMNS = {"labels": "labels.csv", "image_column": "file", "label_column": "label"}


def declare(folder: Path, options: Mapping[str, Any] = COLUMNS, **more: Any) -> DatasetSpec:
    return table_spec(folder, options, **more)


def write_rows(folder: Path, rows: Sequence[str], header: str = "file,label") -> None:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def six(folder: Path) -> list[str]:
    """Six pictures, and a table's rows for them."""
    rows = []
    for index in range(6):
        write_picture(folder / f"images/{index}.png", key=f"picture {index}")
        rows.append(f"images/{index}.png,{'malignant' if index % 2 else 'benign'}")
    return rows


def by_id(data: Dataset) -> dict[str, Document]:
    return {document.id: document for document in data.documents}


def test_a_table_of_images(tmp_path: Path) -> None:
    write_rows(tmp_path, six(tmp_path))
    data = load_dataset(declare(tmp_path))
    result = by_id(data)
    assert list(result) == [f"images/{index}" for index in range(6)]
    assert [item.label for item in result.values()] == ["benign", "malignant"] * 3
    assert all(item.group == item.id for item in result.values())
    assert {fold: sum(row.values()) for fold, row in data.counts().items()} == {"train": 2, "validation": 2, "test": 2}
    assert data.image(result["images/3"]).tobytes() == picture("picture 3").convert("RGB").tobytes()


@pytest.mark.parametrize(
    "cell",
    [
        "images/0.png",
        "images/0",
        "0.png",
        "0",
        r"images\0.png",
        "./images/0.png",
        "{folder}/images/0.png",
        "{name}/images/0.png",
    ],
)
def test_the_ways_to_name_a_file(tmp_path: Path, cell: str) -> None:
    rows = six(tmp_path)
    rows[0] = cell.format(folder=tmp_path, name=tmp_path.name) + ",benign"
    write_rows(tmp_path, rows)
    assert "images/0" in by_id(load_dataset(declare(tmp_path)))


def test_groups_and_folds_from_columns(tmp_path: Path) -> None:
    folds = ["train", "Training", "val", "VALID", "test", "testing"]
    rows = [f"{row},p{index // 2},{fold}" for index, (row, fold) in enumerate(zip(six(tmp_path), folds, strict=True))]
    write_rows(tmp_path, rows, "file,label,patient,split")
    data = load_dataset(declare(tmp_path, {**COLUMNS, "group_column": "patient", "fold_column": "split"}))
    assert [document.group for document in data.documents] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [document.fold for document in data.documents] == [
        "train",
        "train",
        "validation",
        "validation",
        "test",
        "test",
    ]


def test_a_stated_split_without_validation_gets_one(tmp_path: Path) -> None:
    rows = []
    for index in range(20):
        write_picture(tmp_path / f"{index}.png", key=f"twenty {index}")
        rows.append(
            f"{index},{'malignant' if index % 2 else 'benign'},p{index // 2},{'test' if index < 4 else 'train'}"
        )
    write_rows(tmp_path, rows, "file,label,patient,split")
    data = load_dataset(declare(tmp_path, {**COLUMNS, "group_column": "patient", "fold_column": "split"}))
    assert {item.id for item in data.select(["test"])} == {"0", "1", "2", "3"}
    validation = data.select(["validation"])
    assert len(validation) == 4 and len({item.group for item in validation}) == 2


def test_groups_from_names(tmp_path: Path) -> None:
    write_rows(tmp_path, [row.replace("images/", "") for row in six(tmp_path)])
    result = load_dataset(declare(tmp_path, {**COLUMNS, "group_pattern": r"^[0-9]", "fold": "test"})).documents
    assert [item.group for item in result] == list("012345") and {item.fold for item in result} == {"test"}
    with pytest.raises(DataError, match=r"6 faults .*(.|\n)*0\.png: expected a name that contains 'p"):
        load_dataset(declare(tmp_path, {**COLUMNS, "group_pattern": "p[0-9]"}))


def test_near_duplicates_join_groups(tmp_path: Path) -> None:
    rows = six(tmp_path)
    twin = np.clip(np.asarray(picture("picture 0"), dtype=int) + 2, 0, 255).astype(np.uint8)
    Image.fromarray(twin).save(tmp_path / "images" / "twin.png")
    write_rows(tmp_path, [*rows, "images/twin.png,benign"])
    result = by_id(load_dataset(declare(tmp_path)))
    assert result["images/twin"].group == result["images/0"].group == "images/0"
    assert result["images/twin"].fold == result["images/0"].fold


def test_folders_as_classes_with_other_names(tmp_path: Path) -> None:
    for name in ("0", "1"):
        for index in range(3):
            write_picture(tmp_path / name / f"{index}.png")
    data = load_dataset(declare(tmp_path, {"labels": "folders", "names": {"0": "benign", "1": "malignant"}}))
    assert {document.id: document.label for document in data.documents}["1/2"] == "malignant"
    write_picture(tmp_path / "other" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: expected images in the class folders .* got one in other/"):
        load_dataset(declare(tmp_path, {"labels": "folders", "names": {"0": "benign", "1": "malignant"}}))
    chosen = {"labels": "folders", "names": {"0": "benign", "1": "malignant"}, "pattern": "[01]/*.png"}
    assert len(load_dataset(declare(tmp_path, chosen)).documents) == 6


@pytest.mark.parametrize(
    ("rows", "header", "options"),
    [
        (["a.png,benign|malignant", "b.png,", "c.png,malignant"], "file,label", COLUMNS),
        (
            ["a.png,1,1.0", "b.png,0,0", "c.png,0.0,1"],
            "file,benign,malignant",
            {"labels": "labels.csv", "image_column": "file"},
        ),
    ],
    ids=["cells", "columns of 0 and 1"],
)
def test_several_findings(tmp_path: Path, rows: list[str], header: str, options: Mapping[str, Any]) -> None:
    for name in "abc":
        write_picture(tmp_path / f"{name}.png")
    write_rows(tmp_path, rows, header)
    result = by_id(load_dataset(declare(tmp_path, options, kind="multilabel")))
    assert {name: item.label for name, item in result.items()} == {
        "a": ("benign", "malignant"),
        "b": (),
        "c": ("malignant",),
    }


FAULTS = {
    "missing column": (["images/0.png,benign"], "file,class", r"expected the columns \['label'\]"),
    "unknown label": (["images/0.png,Benign"], "file,label", r"line 2: expected 'label' to be one of .* 'Benign'"),
    "climbing": (["../secret.png,benign"], "file,label", r"line 2: .* climbs out of a folder"),
    "climbing later": (["images/../../secret.png,benign"], "file,label", "climbs out of a folder"),
    "elsewhere": (["/etc/passwd,benign"], "file,label", "an absolute path outside the folder"),
    "other drive": ([r"C:\scans\a.png,benign"], "file,label", "an absolute path outside the folder"),
    "no file": (["images/7.png,benign"], "file,label", r"line 2: expected 'images/7.png' to be a file .* got none"),
    "a folder": (["images,benign"], "file,label", "got a folder"),
    "another kind": (["labels.csv,benign"], "file,label", "a file of another kind"),
    "empty cell": (["images/0.png,"], "file,label", "expected text in every column used, got none in 'label'"),
    "twice": (
        ["images/0.png,benign", "0,benign"],
        "file,label",
        r"lines 2, 3: expected one row for images/0\.png, got 2 with the same label",
    ),
    "twice with two labels": (["0,benign", "images/0.png,malignant"], "file,label", "got 2 with 2 labels"),
    "no rows": ([], "file,label", "expected rows that name images"),
    "zero byte": (["images/0\0.png,benign"], "file,label", "got none"),
    "endless": (["x" * 5000 + ",benign"], "file,label", "got none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_table(tmp_path: Path, fault: str) -> None:
    rows, header, expected = FAULTS[fault]
    write_picture(tmp_path.parent / "secret.png")
    six(tmp_path)
    write_rows(tmp_path, rows, header)
    with pytest.raises(DataError, match=expected):
        load_dataset(declare(tmp_path))


@pytest.mark.parametrize("word", ["external", "", "0"])
def test_an_unknown_fold_is_asked_about(tmp_path: Path, word: str) -> None:
    words = ["train", "dev", "holdout", word, "train", "holdout"]
    rows = [f"{row},{word}" for row, word in zip(six(tmp_path), words, strict=True)]
    write_rows(tmp_path, rows, "file,label,split")
    options = {**COLUMNS, "fold_column": "split"}
    expected = "expected text in every column" if not word else rf"to name a fold .*got '{word}' in 1 row\. Say what"
    with pytest.raises(DataError, match=expected):
        load_dataset(declare(tmp_path, options))
    if word:
        result = by_id(load_dataset(declare(tmp_path, {**options, "fold_names": {word: "test"}})))
        assert [result[f"images/{i}"].fold for i in range(4)] == ["train", "validation", "test", "test"]
        result = by_id(load_dataset(declare(tmp_path, {**options, "fold_names": {word: "none"}})))
        assert "images/3" not in result and len(result) == 5


def test_doubtful_labels_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = six(tmp_path)
    write_picture(tmp_path / "images/copy.png", key="picture 0")
    write_rows(tmp_path, [*rows, "images/copy.png,malignant"])
    data = load_dataset(declare(tmp_path))
    assert any("images/0 (benign) = images/copy (malignant)" in warning for warning in data.warnings), data.warnings
    assert any("The test fold has" in warning for warning in data.warnings)
    for warning in data.warnings:
        assert warning in caplog.text


def test_a_name_that_two_files_have(tmp_path: Path) -> None:
    rows = six(tmp_path)
    write_picture(tmp_path / "more/0.png")
    write_rows(tmp_path, ["0.png,benign", *rows[1:]])
    with pytest.raises(DataError, match=r"2 files that '0\.png' may mean \(images/0\.png, more/0\.png\)"):
        load_dataset(declare(tmp_path))


def test_two_files_that_differ_by_ending_alone(tmp_path: Path) -> None:
    rows = six(tmp_path)
    write_picture(tmp_path / "images/0.jpg")
    write_rows(tmp_path, [*rows, "images/0.jpg,benign"])
    with pytest.raises(DataError, match=r"0\.png, .*0\.jpg: expected one file per id.*rename one"):
        load_dataset(declare(tmp_path))


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rows = six(folder)
    outside = write_picture(tmp_path / "elsewhere/x.png")
    (folder / "images/link.png").symlink_to(outside)
    (folder / "door").symlink_to(outside.parent)
    write_rows(folder, [*rows, "images/link.png,benign", "door/x.png,benign"])
    with pytest.raises(DataError) as caught:
        load_dataset(declare(folder))
    assert str(caught.value).count("got a link that leads out of the folder") == 2


BAD_FILES = {
    "truncated": lambda path: cut(path, 0.6),
    "zero bytes": lambda path: path.write_bytes(b""),
    "wrong ending": lambda path: path.write_bytes(b"%PDF-1.7 nothing of an image"),
    "a million pixels and more": lambda path: Image.new("1", (30_000, 30_000)).save(path),
}


@pytest.mark.parametrize("damage", BAD_FILES)
def test_bad_files_are_an_error_or_listed(tmp_path: Path, damage: str) -> None:
    rows = six(tmp_path)
    BAD_FILES[damage](tmp_path / "images/2.png")
    write_rows(tmp_path, [*rows, "images/none.png,benign"])
    with pytest.raises(DataError, match=r"2 faults(.|\n)*(2\.png(.|\n)*none\.png|none\.png(.|\n)*2\.png)"):
        load_dataset(declare(tmp_path))
    data = load_dataset(declare(tmp_path), on_error="skip")
    assert len(data.documents) == 5 and len(data.skipped) == 2
    assert {document.id for document in data.documents} == {f"images/{index}" for index in (0, 1, 3, 4, 5)}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads every file, so none can be closed to this process")
def test_closed_files_and_folders(tmp_path: Path) -> None:
    write_rows(tmp_path, six(tmp_path))
    (tmp_path / "images/2.png").chmod(0)
    with pytest.raises(DataError, match=r"2\.png: expected an image file, got one that cannot be read \(Permission"):
        load_dataset(declare(tmp_path))
    closed = tmp_path / "images"
    closed.chmod(0)
    try:
        with pytest.raises(DataError, match="expected a folder that can be listed"):
            load_dataset(declare(tmp_path))
    finally:
        closed.chmod(0o700)


def test_single_dicom_files_are_pictures(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for index in range(6):
        name = f"{index}.dcm" if index % 2 else f"IM{index:06d}"
        write_dicom(tmp_path / name, generator.integers(0, 4000, (20, 24)).astype(np.uint16), modality="CR")
        rows.append(f"{name},{'malignant' if index % 2 else 'benign'}")
    write_rows(tmp_path, rows)
    data = load_dataset(declare(tmp_path))
    assert {data.image(document).size for document in data.documents} == {(24, 20)}
    assert {document.id for document in data.documents} >= {"IM000000", "1"}


def test_pictures_of_every_mode_are_read(tmp_path: Path) -> None:
    base = picture("x", (40, 30))
    base.convert("CMYK").save(tmp_path / "cmyk.jpg")
    base.quantize(16).save(tmp_path / "palette.png")
    frames = [picture(str(index), (40, 30)).convert("P") for index in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.save(tmp_path / "array.npy", np.linspace(-1000, 1000, 1200, dtype=np.float32).reshape(30, 40))
    np.save(tmp_path / "colour.npy", np.asarray(picture("y", (40, 30)).convert("RGB")))
    write_rows(
        tmp_path,
        [
            f"{name},{label}"
            for name, label in zip(
                ("cmyk.jpg", "palette.png", "moving.gif", "array.npy", "colour.npy"),
                ("benign", "malignant") * 3,
                strict=False,
            )
        ],
    )
    data = load_dataset(declare(tmp_path))
    pictures = {document.id: data.image(document) for document in data.documents}
    assert {entry.size for entry in pictures.values()} == {(40, 30)} and {
        entry.mode for entry in pictures.values()
    } == {"RGB"}
    assert pictures["moving"].tobytes() == frames[0].convert("RGB").tobytes()
    assert pictures["array"].getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[1.0, np.nan]]), "expected finite numbers"),
        (np.array([[1.0, np.inf]]), "expected finite numbers"),
        (np.zeros((2, 3, 4, 5)), r"got float64 \[2, 3, 4, 5\]"),
        (np.zeros((0, 3)), r"got float64 \[0, 3\]"),
        (np.array([["a", "b"]]), "got <U1"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: Any, expected: str) -> None:
    rows = six(tmp_path)
    np.save(tmp_path / "bad.npy", array)
    write_rows(tmp_path, [*rows, "bad.npy,benign"])
    with pytest.raises(DataError, match=expected):
        load_dataset(declare(tmp_path))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    rows = six(tmp_path)
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    write_rows(tmp_path, [*rows, "bad.npy,benign"])
    with pytest.raises(DataError, match="expected a whole NumPy array of numbers"):
        load_dataset(declare(tmp_path))


def volumes(folder: Path) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for index, ending in enumerate((".nii.gz", ".nii", ".nrrd", ".mha", ".npy")):
        voxels = generator.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
        if ending == ".npy":
            np.save(folder / f"{index}.npy", voxels)
        else:
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((0.5, 0.5, 3.0))
            sitk.WriteImage(image, str(folder / f"{index}{ending}"))
    write_series(folder / "series", generator.integers(-1000, 1000, (5, 6, 7)).astype(np.int16))


def test_volumes_of_every_format(tmp_path: Path) -> None:
    volumes(tmp_path)
    names = ["0.nii.gz", "1", "2.nrrd", "3.mha", "4.npy", "series"]
    write_rows(tmp_path, [f"{name},{'malignant' if index % 2 else 'benign'}" for index, name in enumerate(names)])
    data = load_dataset(declare(tmp_path, {**COLUMNS, "unit": "HU"}, dimensions=3))
    assert [document.id for document in data.documents] == ["0", "1", "2", "3", "4", "series"]
    assert all(data.volume(document).unit == "HU" for document in data.documents)
    assert data.volume(by_id(data)["0"]).voxels.shape == (5, 6, 7)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: np.zeros((5, 5), np.float32), r"got .*\[5, 5\]"),
        (lambda: np.zeros((2, 3, 4, 5), np.float32), r"got .*\[2, 3, 4, 5\]"),
        (lambda: np.full((3, 4, 5), np.nan, np.float32), "NaN|finite"),
        (lambda: np.full((3, 4, 5), np.inf, np.float32), "infinit|finite"),
    ],
    ids=["2D", "4D", "NaN", "infinite"],
)
def test_bad_volumes_are_an_error_or_listed(tmp_path: Path, make: Any, expected: str) -> None:
    volumes(tmp_path)
    np.save(tmp_path / "bad.npy", make())
    names = ["0", "1", "2", "3", "4", "series"]
    rows = [f"{name},{'malignant' if index % 2 else 'benign'}" for index, name in enumerate(names)]
    write_rows(tmp_path, [*rows, "bad.npy,benign"])
    with pytest.raises(DataError, match=rf"bad\.npy: .*({expected})"):
        load_dataset(declare(tmp_path, dimensions=3))
    assert len(load_dataset(declare(tmp_path, dimensions=3), on_error="skip").documents) == 6


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        ({}, {}, r"options: keys \['labels'\] are missing"),
        ({**COLUMNS, "colour": "x"}, {}, r"options: unknown keys 'colour'"),
        ({**COLUMNS, "pattern": 3}, {}, "options: expected `pattern` to be text or a list of it, got 3"),
        ({"labels": "labels.csv", "label_column": "label"}, {}, "expected the option `image_column`"),
        ({"labels": "labels.csv", "image_column": "file"}, {}, "expected the option `label_column`"),
        ({**COLUMNS, "group_column": "label"}, {}, "a column of its own for each purpose"),
        ({**COLUMNS, "names": {"0": "other"}}, {}, r"expected `names` to lead to classes, got \['other'\]"),
        ({**COLUMNS, "unit": "HU"}, {}, "in a set of volumes"),
        ({**COLUMNS, "unit": "mm"}, {"dimensions": 3}, 'expected `unit` to be "HU" or "any"'),
        ({"labels": "folders"}, {"kind": "multilabel"}, "a folder is one class"),
        ({"labels": "folders", "group_column": "x"}, {}, "expected no columns with labels: folders"),
        ({**COLUMNS, "pattern": "../*"}, {}, "a pattern below the folder"),
        ({**COLUMNS, "group_column": "p", "group_pattern": "p"}, {}, "`group_column` or `group_pattern`, got both"),
        ({**COLUMNS, "group_pattern": "("}, {}, "to be a regular expression"),
        ({**COLUMNS, "fold_column": "f", "fold": "test"}, {}, "got several"),
        ({**COLUMNS, "fold": "holdout"}, {}, r"expected folds among .* got \['holdout'\]"),
        ({**COLUMNS, "fold_files": {"train": "none.txt"}}, {}, r"none\.txt: expected a list of images"),
        ({**COLUMNS, "fold_files": "train.txt"}, {}, "options: expected `fold_files` to be a mapping to text"),
        ({**COLUMNS, "no_finding": "none"}, {}, "`no_finding` is for multi-label sets"),
        ({**COLUMNS, "labels": []}, {}, "to be text or a list of it"),
    ],
)
def test_options_that_do_not_go(tmp_path: Path, options: Any, more: Any, expected: str) -> None:
    write_rows(tmp_path, six(tmp_path))
    with pytest.raises(DataError, match=expected):
        load_dataset(declare(tmp_path, options, **more))


def test_further_columns_travel_with_the_documents(tmp_path: Path) -> None:
    rows = [f"{row},{'A' if index < 3 else ''},f" for index, row in enumerate(six(tmp_path))]
    write_rows(tmp_path, rows, "file,label,scanner,sex")
    plain = load_dataset(declare(tmp_path))
    data = load_dataset(declare(tmp_path, {**COLUMNS, "attribute_columns": ["scanner", "sex"]}))
    assert all(document.attributes == () for document in plain.documents)
    result = by_id(data)
    assert result["images/0"].attributes == (("scanner", "A"), ("sex", "f"))
    assert result["images/5"].attributes == (("scanner", ""), ("sex", "f"))  # an empty cell is no fault
    fingerprints = {plain.fingerprint, data.fingerprint}
    write_rows(tmp_path, [row.replace(",A,", ",B,") for row in rows], "file,label,scanner,sex")
    fingerprints.add(load_dataset(declare(tmp_path, {**COLUMNS, "attribute_columns": ["scanner", "sex"]})).fingerprint)
    assert len(fingerprints) == 3  # a run whose columns changed takes nothing from an earlier one
    assert load_dataset(declare(tmp_path)).fingerprint == plain.fingerprint
    path = tmp_path / "folds.json"
    path.write_text(fold_manifest.to_json("own", data.fingerprint, data.documents))
    assert fold_manifest.read(path)[1] == data.documents


@pytest.mark.parametrize("columns", ["label", ["scanner", "scanner"], ["none such"]])
def test_further_columns_must_be_there_and_have_no_other_use(tmp_path: Path, columns: Any) -> None:
    write_rows(tmp_path, [f"{row},A" for row in six(tmp_path)], "file,label,scanner")
    with pytest.raises(DataError, match=r"a column of its own for each purpose|none such"):
        load_dataset(declare(tmp_path, {**COLUMNS, "attribute_columns": columns}))
