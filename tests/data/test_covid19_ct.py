"""The layout of COVID19-CT: odd names, sources, archives and the official split."""

import logging
import os
from collections import defaultdict
from pathlib import Path

import pytest
from support.image_files import cut, picture, snapshot, write_picture

from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.layouts.covid19_ct import sources
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["covid19_ct"]

COVID = [
    "2020.02.25.20027763-p15-53%0.png",
    "2020.02.25.20027763-p15-53%1.png",
    "2020.02.25.20027763-p16-60.png",
    "2020.02.26.20026989-p34-114_1%0.png",
    "2020.02.26.20026989-p34-114_2%1.png",
    "PIIS0140673620303603%8.png",
    "PIIS0140673620301549_0%1.png",
    "PIIS0140673620301549_2.png",
    "kjr-21-e24-g001-l-a.jpg",
    "Ni 2020 Article-p3-10%0.png",
]
NON_COVID = ["0.jpg", "1%0.jpg", "1%1.jpg", "102.png", "103.png", "673.JPG", "2237.jpeg", "996.png", "102.1.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The set's folder with a few images of each class, in the modes that occur in the set."""
    top = tmp_path / "covid19_ct"
    for name, files in (("CT_COVID", COVID), ("CT_NonCOVID", NON_COVID)):
        (top / name).mkdir(parents=True)
        for index, file in enumerate(files):
            image = picture(f"{name}/{file}")
            image.convert(["L", "RGB"][index % 2] if not file.endswith(".png") else "RGBA").save(top / name / file)
    return top


def write_split(folder: Path, test: set[str], validation: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    for short, files in (("COVID", COVID), ("NonCOVID", NON_COVID)):
        lists = folder / "Data-split" / short
        lists.mkdir(parents=True)
        for prefix, chosen in (
            ("test", [file for file in files if file in test]),
            ("val", [file for file in files if file in validation]),
            ("train", [file for file in files if file not in test | validation]),
        ):
            (lists / f"{prefix}CT_{short}.txt").write_text("\r\n".join([*chosen, ""]), encoding="utf-8")


def load(folder: Path) -> Dataset:
    return load_dataset(SPEC, root=folder.parent)


def fault(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(folder)
    return str(caught.value)


def test_documents(folder: Path) -> None:
    before = snapshot(folder)
    data = load(folder)
    names = {f"CT_COVID/{Path(file).stem}": "COVID" for file in COVID}
    names |= {f"CT_NonCOVID/{Path(file).stem}": "Non-COVID" for file in NON_COVID}
    assert {document.id: document.label for document in data.documents} == names
    groups = {document.id.partition("/")[2]: document.group for document in data.documents}
    assert groups["2020.02.25.20027763-p15-53%0"] == groups["2020.02.25.20027763-p16-60"] == "2020.02.25.20027763"
    assert groups["1%0"] == groups["1%1"] != groups["0"]
    assert groups["102"] == groups["103"] != groups["996"]
    folds = defaultdict(set)
    for document in data.documents:
        folds[document.group].add(document.fold)
        assert data.image(document).mode == "RGB"
    assert all(len(fold) == 1 for fold in folds.values())
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("2020.02.25.20027763-p15-53%0.png", "2020.02.25.20027763"),
        ("2020.03.22.20040782-p24-1533-4.png", "2020.03.22.20040782"),
        ("2020.02.26.20026989-p34-114_1%0.png", "2020.02.26.20026989"),
        ("PIIS0140673620303603%8.png", "PIIS0140673620303603"),
        ("PIIS0140673620301549_0%1.png", "PIIS0140673620301549"),
        ("PIIS0140673620302117_2.png", "PIIS0140673620302117"),
        ("bmj.m606.full-p4-22%7.png", "bmj.m606.full"),
        ("kjr-21-e25-p1-10.png", "kjr-21-e25"),
        ("kjr-21-e24-g001-l-a.jpg", "kjr-21-e24"),
        ("on-p53-in-cancer-p4-22.png", "on-p53-in-cancer"),
        ("case report.png", "case report"),
        ("4%7.jpg", "CT_NonCOVID/4.jpg"),
        ("88.JPEG", "CT_NonCOVID/88.jpg"),
        ("171.png", "CT_NonCOVID/171.png"),
    ],
)
def test_source_of_a_name(name: str, source: str) -> None:
    assert sources("CT_NonCOVID", [name]) == [source]


def test_medpix_cases_are_not_divided() -> None:
    """Runs of figure numbers with the patients that the authors' NonCOVID-CT-MetaInfo.csv states for them."""
    patients = {
        78: [171, 174],
        10: [176, 177],
        68: [381, 382, 383, 385],
        57: [658, 660, 661, 662, 663],
        66: [887, 889, 890],
        39: [1328, 1330, 1331, 1332, 1333],
        32: [2138, 2139, 2140, 2141, 2142, 2143, 2144, 2145],
    }
    names = [f"{number}.png" for numbers in patients.values() for number in numbers]
    result = dict(zip(names, sources("CT_NonCOVID", names), strict=True))
    for numbers in patients.values():
        assert len({result[f"{number}.png"] for number in numbers}) == 1
    assert len(set(result.values())) >= len(patients) - 1
    shuffled = sources("CT_NonCOVID", names[::-1])[::-1]
    assert shuffled == list(result.values())


def test_near_duplicates_join_sources(folder: Path) -> None:
    image = picture("figure", (200, 160))
    image.save(folder / "CT_COVID" / "2020.02.25.20027763-p20-70.png")
    image.resize((320, 256)).save(folder / "CT_COVID" / "reprint-p1-2.jpg", quality=80)
    groups = {document.id: document.group for document in load(folder).documents}
    assert groups["CT_COVID/reprint-p1-2"] == groups["CT_COVID/2020.02.25.20027763-p15-53%0"] == "2020.02.25.20027763"


def test_archives_ask_to_be_unzipped(folder: Path) -> None:
    for name in ("CT_COVID", "CT_NonCOVID"):
        (folder / name).rename(folder.parent / name)
        (folder / f"{name}.zip").write_bytes(b"PK")
    message = fault(folder)
    assert "CT_COVID.zip" in message and "CT_NonCOVID.zip" in message and message.count("unzip it") == 2


def test_archives_beside_folders_do_no_harm(folder: Path) -> None:
    (folder / "CT_COVID.zip").write_bytes(b"PK")
    assert len(load(folder).documents) == len(COVID) + len(NON_COVID)


def test_clone_of_the_repository(folder: Path) -> None:
    reference = load(folder)
    (folder / "Images-processed").mkdir()
    for name in ("CT_COVID", "CT_NonCOVID"):
        (folder / name).rename(folder / "Images-processed" / name)
        (folder / "Images-processed" / f"{name}.zip").write_bytes(b"PK")
    (folder / "baseline methods").mkdir()
    (folder / "README.md").write_text("read me")
    assert load(folder).fingerprint == reference.fingerprint


def test_all_faults_are_in_one_error(folder: Path) -> None:
    (folder / "CT_COVID" / COVID[0]).write_bytes(b"")
    (folder / "CT_COVID" / COVID[3]).write_text("no image")
    cut(folder / "CT_COVID" / COVID[5], 0.5)
    cut(folder / "CT_NonCOVID" / "0.jpg", 0.5)
    write_picture(folder / "CT_NonCOVID" / "1%0.png")
    write_picture(folder / "CT_Unsure" / "1.png")
    write_picture(folder / "pneumonia" / "1.png")
    before = snapshot(folder)
    message = fault(folder)
    assert "7 faults" in message.splitlines()[0]
    for path, reason in {
        f"CT_COVID/{COVID[0]}": "0 bytes",
        f"CT_COVID/{COVID[3]}": "not one of",
        f"CT_COVID/{COVID[5]}": "truncated",
        "CT_NonCOVID/0.jpg": "do not decode",
        "CT_NonCOVID/1%0.png": "2 files with one id",
        "CT_Unsure": "unexpected class folder",
        "pneumonia": "unexpected class folder",
    }.items():
        assert any(str(folder / path) in line and reason in line for line in message.splitlines()), path
    assert snapshot(folder) == before


def test_empty_and_missing_class_folders(folder: Path) -> None:
    for path in (folder / "CT_COVID").iterdir():
        path.unlink()
    assert "empty class folder" in fault(folder)
    (folder / "CT_COVID").rmdir()
    assert f"{folder / 'CT_COVID'}: expected a class folder" in fault(folder)


def test_official_split_is_taken_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(folder, test={COVID[5], NON_COVID[0]}, validation={COVID[8], NON_COVID[5]})
    with caplog.at_level(logging.WARNING):
        data = load(folder)
    assert {document.id for document in data.select(["test"])} == {f"CT_COVID/{COVID[5][:-4]}", "CT_NonCOVID/0"}
    assert {document.id for document in data.select(["validation"])} == {f"CT_COVID/{COVID[8][:-4]}", "CT_NonCOVID/673"}
    assert not caplog.records


def test_leaks_of_the_official_split_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(folder, test={COVID[0], COVID[3], COVID[5]})
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "2 of 3 test documents share a group" in caplog.text


def test_official_split_with_other_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(folder, test={COVID[5], NON_COVID[0]})
    write_picture(folder / "CT_COVID" / "later.png")
    (folder / "CT_NonCOVID" / "996.png").unlink()
    with caplog.at_level(logging.WARNING):
        folds = {document.id: document.fold for document in load(folder).documents}
    assert folds["CT_COVID/later"] == "train"
    assert "1 images are in no list" in caplog.text
    assert "1 of 19 images in the lists" in caplog.text


def test_faults_of_the_official_split(folder: Path) -> None:
    write_split(folder, test={COVID[5]})
    (folder / "Data-split" / "COVID" / "valCT_COVID.txt").unlink()
    lists = folder / "Data-split" / "NonCOVID"
    (lists / "testCT_NonCOVID.txt").write_text("some/folder/0.jpg\n")
    message = fault(folder)
    assert "valCT_COVID.txt" in message and "0.jpg is also listed in the train fold" in message


@pytest.mark.skipif("MEDMLLM_DATA" not in os.environ, reason="MEDMLLM_DATA is not set: no real COVID19-CT images")
def test_real_images() -> None:
    data = load_dataset(SPEC)
    folds = defaultdict(set)
    for document in data.documents:
        assert document.label == {"CT_COVID": "COVID", "CT_NonCOVID": "Non-COVID"}[Path(document.image).parent.name]
        folds[document.group].add(document.fold)
    assert 0.15 * len(data.documents) < len(folds) < 0.5 * len(data.documents)
    for label in SPEC.labels:
        assert all(data.counts()[fold][label] > 20 for fold in FOLDS)
