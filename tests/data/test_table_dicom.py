"""Sets of DICOM files: colour, films, objects without pictures, and what their headers give away about groups."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dicom_files import CT, MARKER, US, element, write_dicom, write_series
from support.own_data import table_spec

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.layouts.user_table import size
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError

GENERATOR = np.random.default_rng(5)
REPORT, PLAN, ECG = (f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("88.11", "481.5", "9.1.1"))


def declare(folder: Path, dimensions: int = 2, **options: Any) -> DatasetSpec:
    options = {"labels": "labels.csv", "image_column": "image", "label_column": "label", **options}
    return table_spec(folder, options, modality="ultrasound image", dimensions=dimensions)


def write_rows(folder: Path, rows: list[str], header: str = "image,label") -> None:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def colour(path: Path, **tags: Any) -> Path:
    pixels = GENERATOR.integers(0, 256, (20, 24, 3)).astype(np.uint8)
    tags = {"photometric": "RGB", "modality": "US", "sop": US, "spacing": (0, 0), **tags}
    return write_dicom(path, pixels, **tags)


def without_pictures(path: Path, sop: str, extra: dict[int, tuple[str, Any]] | None = None) -> None:
    """An object of another kind: a DICOM file without any element about pixels."""
    write_dicom(path, np.zeros((2, 2), np.uint8), sop=sop, modality="SR")
    content = path.read_bytes()
    start = content.index(element(0x00280002, "US", 1))
    path.write_bytes(content[:start])


def series_uid(number: int) -> dict[int, tuple[str, Any]]:
    return {0x0020000E: ("UI", f"1.2.826.9.{number}"), 0x0020000D: ("UI", f"1.2.826.8.{number}")}


def test_colour_is_a_set_of_images(tmp_path: Path) -> None:
    rows = []
    for index in range(6):
        colour(tmp_path / f"{index}.dcm")
        rows.append(f"{index}.dcm,{'malignant' if index % 2 else 'benign'}")
    write_rows(tmp_path, rows)
    data = load_dataset(declare(tmp_path))
    assert {data.image(document).size for document in data.documents} == {(24, 20)}
    assert {size(data.spec, data.folder, document) for document in data.documents} == {((24, 20), ())}


@pytest.mark.parametrize("labels", ["table", "folders"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_objects_without_pictures_are_counted_and_left_out(
    tmp_path: Path, labels: str, dimensions: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows = []
    for index in range(6):
        label = ("benign", "malignant")[index % 2]
        folder = tmp_path / label / f"case{index}" if dimensions == 3 else tmp_path / label
        if dimensions == 3:
            write_series(folder, GENERATOR.integers(-900, 900, (3, 8, 8)).astype(np.int16))
        else:
            colour(folder / f"{index}.dcm")
        without_pictures(folder / f"report{index}.dcm", REPORT if index else PLAN)
        rows.append(f"{label}/case{index},{label}" if dimensions == 3 else f"{label}/{index}.dcm,{label}")
        rows.append(f"{label}/{f'case{index}/' if dimensions == 3 else ''}report{index}.dcm,{label}")
    write_rows(tmp_path, rows)
    options = {} if labels == "table" else {"labels": "folders", "image_column": None, "label_column": None}
    with caplog.at_level(logging.WARNING):
        data = load_dataset(declare(tmp_path, dimensions, **options))
    assert len(data.documents) == 6 and not data.skipped
    expected = "6 DICOM objects without pictures left out (5 of the kind structured report, 1 of the kind RT plan)"
    assert expected in caplog.text
    assert MARKER not in caplog.text and "1.2.826" not in caplog.text


def test_a_picture_without_pixels_is_a_fault_all_the_same(tmp_path: Path) -> None:
    for index in range(2):
        colour(tmp_path / f"{index}.dcm")
    without_pictures(tmp_path / "2.dcm", CT)
    write_rows(tmp_path, ["0.dcm,benign", "1.dcm,malignant", "2.dcm,benign"])
    with pytest.raises(DataError, match=r"2\.dcm: expected a DICOM picture, got one without pixels"):
        load_dataset(declare(tmp_path))


def test_films_show_their_middle_or_what_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = []
    for index in range(4):
        frames = GENERATOR.integers(0, 256, (5, 20, 24)).astype(np.uint8)
        write_dicom(tmp_path / f"{index}.dcm", frames, sop=US, modality="US", extra={0x00280301: ("CS", "YES")})
        rows.append(f"{index}.dcm,{'malignant' if index % 2 else 'benign'}")
    write_rows(tmp_path, rows)
    shown = {}
    for frame in (None, "middle", "3", "first", "all"):
        caplog.clear()
        data = load_dataset(declare(tmp_path, frame=frame))
        shown[frame] = data.image(data.documents[0])
        assert ("4 of 4 DICOM files are films" in caplog.text) == (frame is None)
        assert "4 of 4 DICOM documents state that text is burned into their pixels" in caplog.text
    assert shown[None] == shown["middle"] == shown["3"] != shown["first"]
    assert shown["all"].size == (72, 40)
    with pytest.raises(DataError, match="expected at least 6 frames, got 5"):
        load_dataset(declare(tmp_path, frame="6"))
    with pytest.raises(DataError, match="`frame`"):
        load_dataset(declare(tmp_path, frame="last"))
    with pytest.raises(DataError, match="sets of images"):
        load_dataset(declare(tmp_path, 3, frame="first"))


def test_a_window_for_slices_read_as_pictures(tmp_path: Path) -> None:
    rows = []
    for index in range(4):
        values = GENERATOR.integers(-1000, 1000, (20, 24)).astype(np.int16)
        write_dicom(tmp_path / f"{index}.dcm", values, rescale=(0, 1))
        rows.append(f"{index}.dcm,{'malignant' if index % 2 else 'benign'}")
    write_rows(tmp_path, rows)
    data = load_dataset(declare(tmp_path, window="lung"))
    grey = np.asarray(data.image(data.documents[3]))[..., 0]
    assert np.array_equal(grey, np.rint(np.clip((values + 1350) / 1500, 0, 1) * 255))
    with pytest.raises(DataError, match="window"):
        load_dataset(declare(tmp_path, window="lungs"))


@pytest.mark.parametrize("grouped", ["patient", "slice", "none"])
def test_series_in_several_groups_are_counted(tmp_path: Path, grouped: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = []
    for index in range(12):
        patient = index // 3
        colour(tmp_path / f"{index}.dcm", extra={0x00100020: ("LO", f"{MARKER}{patient}"), **series_uid(patient)})
        fold = (
            ("train", "train", "test")[index % 3]
            if grouped == "slice"
            else ("train", "test", "validation", "train")[patient]
        )
        group = patient if grouped == "patient" else index
        rows.append(f"{index}.dcm,{('benign', 'malignant')[patient // 2]},{group},{fold}")
    write_rows(tmp_path, rows, "image,label,group,fold")
    columns = {"fold_column": "fold"} if grouped == "none" else {"fold_column": "fold", "group_column": "group"}
    load_dataset(declare(tmp_path, **columns))
    if grouped == "patient":
        assert "groups" not in caplog.text
    else:
        several = "4 of 4 series, 4 of 4 studies, 4 of 4 patients have documents in several groups"
        assert several in caplog.text
        assert ("and 4 of them in several folds" if grouped == "slice" else "and none of them") in caplog.text
    assert MARKER not in caplog.text and "1.2.826" not in caplog.text


def test_one_identifier_for_all_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(4):
        colour(tmp_path / f"{index}.dcm", extra={0x00100020: ("LO", "ANON"), **series_uid(index)})
    write_rows(tmp_path, [f"{index}.dcm,{('benign', 'malignant')[index % 2]}" for index in range(4)])
    load_dataset(declare(tmp_path))
    assert "groups" not in caplog.text
