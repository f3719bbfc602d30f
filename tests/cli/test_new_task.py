"""``medmllm task new``: what is guessed, said, written and refused; and ``medmllm datasets --check``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from support.dicom_files import US, write_dicom, write_series
from support.image_files import snapshot, write_picture

from medmllm_plugins.cli.app import main
from medmllm_plugins.cli.doctor import examine, merge_missing_sets
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.host.task_index import add_tasks
from medmllm_plugins.plugins.manager import get_manager, reset
from medmllm_plugins.prompts.task_names import task_settings

Medmllm = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "tasks"
    monkeypatch.setenv("MEDMLLM_TASKS", str(folder))
    monkeypatch.delenv("MEDMLLM_DATA", raising=False)
    reset()
    yield folder
    reset()


@pytest.fixture
def medmllm(capsys: pytest.CaptureFixture[str]) -> Medmllm:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        reset()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for index in range(8):
        write_picture(folder / f"{index}.png", key=f"own {index}", size=(40 + index, 30))
    return folder


def table(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...]) -> Path:
    path.write_text("\r\n".join(",".join(map(str, row)) for row in (header, *rows)), encoding="utf-8-sig")
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = [(f"{index}.png", index % 2, f"p{index // 2}") for index in range(8)]
    return table(tmp_path / "labels.csv", rows, ("File", "Diagnosis", "Patient_ID"))


def test_a_table_becomes_a_task(medmllm: Medmllm, images: Path, labels: Path, own_tasks: Path) -> None:
    before = snapshot(images)
    status, said, _ = medmllm(
        "task", "new", "chest", "--images", images, "--labels", labels,
        "--classes", "0=normal,1=pneumonia", "--positive", "pneumonia", "--modality", "chest X-ray",
    )  # fmt: skip
    assert status == 0 and snapshot(images) == before
    for line in (
        "chosen     images: the column 'File'",
        "chosen     groups: the column 'Patient_ID'",
        "chosen     classes: the column 'Diagnosis'",
        "images     8 (8 .png)",
        "groups     4 (column 'Patient_ID'; none joined by near-duplicate images)",
        "size       width 40–43–47, height 30 (min–median–max)",
        f"written    {own_tasks / 'chest.yaml'}",
        "--tasks chest",
    ):
        assert line in said
    counts = {
        row[0]: [int(cell) for cell in row[1:]]
        for row in map(str.split, said.splitlines())
        if len(row) == 4 and row[0] in ("normal", "pneumonia", "all")
    }
    assert sum(counts["normal"]) == sum(counts["pneumonia"]) == 4 and sum(counts["all"]) == 8
    spec = task_settings("chest").dataset
    assert spec.labels == ("normal", "pneumonia") and spec.positive == "pneumonia" and spec.modality == "chest X-ray"
    assert spec.folder == str(images) and spec.options["names"] == {"0": "normal", "1": "pneumonia"}
    listed = json.loads(medmllm("task", "list", "--json")[1])
    for name in ("chest", "med_probe_chest", "med_attr_chest"):  # and the tasks that look into a model
        assert {"name": name, "from": "(user)", "file": str(own_tasks / "chest.yaml")} in listed


def test_what_was_read_is_told_though_the_folder_has_gone(own_tasks: Path) -> None:
    own_tasks.mkdir()
    (own_tasks / "here.yaml").write_text("task: here\nmetadata: {version: 1}\n")
    assert get_manager().tasks()["here"].plugin == "(user)"
    shutil.rmtree(own_tasks)
    tasks_by_plugin = {plugin["name"]: plugin["tasks"] for plugin in get_manager().describe()["plugins"]}
    assert tasks_by_plugin["(user)"] == ["here"]


def test_folders_become_a_task(medmllm: Medmllm, tmp_path: Path) -> None:
    for name in ("benign", "malignant"):
        for index in range(4):
            write_picture(tmp_path / "scans" / name / f"{index}.jpg", size=(60, 50))
    assert medmllm("task", "new", "lesions", "--images", tmp_path / "scans", "--labels", "folders")[0] == 0
    assert task_settings("lesions").dataset.labels == ("benign", "malignant")


def test_a_pattern_chooses(medmllm: Medmllm, images: Path, labels: Path) -> None:
    write_picture(images / "notes" / "0.png")  # would make "0.png" ambiguous
    words = ("task", "new", "chosen", "--images", f"{images}/*.png", "--labels", labels)
    assert medmllm(*words)[0] == 0
    assert task_settings("chosen").dataset.options["pattern"] == "*.png"


def test_several_findings(medmllm: Medmllm, images: Path, tmp_path: Path) -> None:
    cells = ["effusion;edema", "", "edema", "mass", "mass;edema", "", "effusion", "mass"]
    rows = [(f"{index}.png", cell) for index, cell in enumerate(cells)]
    labels = table(tmp_path / "f.csv", rows, ("image", "findings"))
    status, said, _ = medmllm("task", "new", "found", "--images", images, "--labels", labels, "--multilabel")
    assert status == 0 and "groups: none; give --group COLUMN" in said
    spec = task_settings("found").dataset
    assert spec.kind == "multilabel" and spec.labels == ("edema", "effusion", "mass")
    assert spec.options["separator"] == ";"
    ticks = table(tmp_path / "t.csv", [(f"{i}.png", i % 2, i // 4) for i in range(8)], ("image", "edema", "mass"))
    status, said, _ = medmllm("task", "new", "ticks", "--images", images, "--labels", ticks, "--multilabel")
    assert status == 0 and "one column of 0 and 1 each, 'edema', 'mass'" in said


def test_grades(medmllm: Medmllm, images: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "g.csv", [(f"{i}.png", i % 3) for i in range(8)], ("image", "grade"))
    words = ("task", "new", "grades", "--images", images, "--labels", labels, "--ordinal")
    status, said, _ = medmllm(*words)
    assert status == 0 and "classes are numbers, which mean nothing to a model" in said
    assert task_settings("grades").dataset.kind == "ordinal"


def test_volumes_of_series_and_files(medmllm: Medmllm, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for index in range(4):
        voxels = generator.integers(-1000, 1000, (4, 12, 10)).astype(np.int16)
        if index % 2:
            write_series(tmp_path / "scans" / f"case{index}", voxels)
        else:
            (tmp_path / "scans").mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((0.7, 0.7, 5.0))
            sitk.WriteImage(image, str(tmp_path / "scans" / f"case{index}.nii.gz"))
        rows.append((f"case{index}", "ab"[index // 2]))
    labels = table(tmp_path / "v.csv", rows, ("case", "label"))
    words = ("task", "new", "scans", "--images", tmp_path / "scans", "--labels", labels, "--image-column", "case")
    status, said, _ = medmllm(*words, "--group", "none", "--unit", "HU")
    assert status == 0
    spec = task_settings("scans").dataset
    assert spec.dimensions == 3 and spec.options["unit"] == "HU"
    assert "volumes    4 (2 .nii.gz, 2 DICOM folders)" in said
    assert "spacing    between slices" in said and "size       slices 4, rows 12, columns 10" in said


@pytest.mark.parametrize("labelled", ["table", "folders"])
def test_colour_films_of_ultrasound(
    medmllm: Medmllm, tmp_path: Path, labelled: str, caplog: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for index in range(8):
        label = ("benign", "malignant")[index % 2]
        frames = generator.integers(0, 256, (4, 20, 24, 3)).astype(np.uint8)
        path = tmp_path / "us" / label / f"{index}.dcm"
        write_dicom(path, frames, photometric="RGB", modality="US", sop=US, spacing=(0, 0), orientation=None)
        rows.append((path.name, label))
    labels = "folders" if labelled == "folders" else table(tmp_path / "us.csv", rows, ("file", "label"))
    words = ("task", "new", "us", "--images", tmp_path / "us", "--labels", labels)
    status, said, error = medmllm(*words)
    assert status == 0, error
    assert "images     8 (8 .dcm)" in said and "size       width 24, height 20" in said
    assert "8 of 8 DICOM files are films" in caplog.text
    status, _, error = medmllm(*words, "--overwrite", "--frame", "all")
    assert status == 0, error
    assert task_settings("us").dataset.options["frame"] == "all"
    assert task_settings("us:frame=2").dataset.options["frame"] == "2"
    assert task_settings("us:window=40/80").dataset.options["window"] == "40/80"
    status, _, error = medmllm(*words, "--overwrite", "--frame", "last")
    assert status == 1 and "Expected `frame` to be first, middle, all or a number" in error


def test_what_stands_there_is_not_overwritten_unasked(
    medmllm: Medmllm, images: Path, labels: Path, own_tasks: Path
) -> None:
    words = ("task", "new", "chest", "--images", images, "--labels", labels)
    assert medmllm(*words)[0] == 0
    status, _, error = medmllm(*words)
    assert status == 1 and "exists; give --overwrite to replace it" in error
    assert medmllm(*words, "--overwrite", "--positive", "1")[0] == 0
    assert task_settings("chest").dataset.positive == "1"
    (own_tasks / "other.yaml").write_text("task: other\nmetadata: {version: 1}\n")
    status, _, error = medmllm("task", "new", "other", *words[3:], "--overwrite")
    assert status == 1 and "is no task that this command wrote" in error


REFUSED: dict[str, tuple[list[str], str]] = {
    "name": (["Chest X-ray"], "lower-case letters, digits and underscores"),
    "name with a path": (["../chest"], "lower-case letters, digits and underscores"),
    "a declared task": (["med_cls_busi"], "'med_cls_busi' is taken by the task in"),
    "a data set": (["busi"], "A data set is called 'busi'"),
    "a task of the host": (["mmmu_val"], "'mmmu_val' is taken by the task in"),
    "label column": (["own", "--label-column", "dx"], r"Expected --label-column to be one of the columns"),
    "image column": (["own", "--image-column", "dx"], "Expected --image-column to be one of the columns"),
    "not of images": (["own", "--image-column", "Patient_ID"], "expected the column 'Patient_ID' to name files"),
    "group": (["own", "--group", "lesion"], "Expected --group to be one of the columns"),
    "class that is not there": (["own", "--classes", "0=a,2=b"], r"expected 'Diagnosis' to be one of .* got '1'"),
    "positive": (["own", "--positive", "pneumonia"], "expected `positive` to be one of the classes"),
    "both kinds": (["own", "--multilabel", "--ordinal"], "either --multilabel or --ordinal"),
    "images": (["own", "--images", "/nowhere/at/all"], "Expected --images to be a folder, got none"),
    "labels": (["own", "--labels", "/nowhere.csv"], "expected a CSV table, got one that cannot be read"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_nothing(
    medmllm: Medmllm, images: Path, labels: Path, own_tasks: Path, what: str
) -> None:
    words, expected = REFUSED[what]
    given: list[Any] = ["task", "new", words[0], "--images", images, "--labels", labels, *words[1:]]
    status, _, error = medmllm(*given)
    assert status == 1
    assert re.search(expected, error, re.IGNORECASE), error
    assert error.startswith("medmllm: ") and not own_tasks.exists()


def test_a_bad_image_is_named_and_nothing_written(
    medmllm: Medmllm, images: Path, labels: Path, own_tasks: Path
) -> None:
    (images / "3.png").write_bytes(b"")
    status, _, error = medmllm("task", "new", "chest", "--images", images, "--labels", labels)
    assert status == 1 and "3.png: expected an image, got an empty file" in error and not own_tasks.exists()


def test_a_check_finds_the_leak_of_a_users_own_split(medmllm: Medmllm, images: Path, tmp_path: Path) -> None:
    folds = ["train", "test", "train", "train", "validation", "validation", "test", "test"]
    rows = [(f"{i}.png", "ab"[i % 2], f"p{i // 2}", folds[i]) for i in range(8)]
    labels = table(tmp_path / "l.csv", rows, ("image", "label", "patient", "split"))
    assert medmllm("task", "new", "leaky", "--images", images, "--labels", labels)[0] == 0
    status, said, _ = medmllm("datasets", "--check", "leaky")
    assert status == 1
    assert "in more than one fold: 1" in said and "p0: train, test" in said and "LEAK" in said
    status, said, _ = medmllm("datasets", "--check", "leaky", "--json")
    (report,) = json.loads(said)
    assert status == 1 and report["divided_groups"] == {"p0": ["train", "test"]} and report["leaking"]


def test_checks_of_what_is_not_there(medmllm: Medmllm) -> None:
    status, said, _ = medmllm("datasets", "--check", "busi")
    assert status == 1 and "busi: not checked" in said and "MEDMLLM_DATA" in said
    status, _, error = medmllm("datasets", "--check", "nothing")
    assert status == 1 and "got 'nothing'. `medmllm datasets` lists all." in error
    for words in (("datasets", "--check", "busy"), ("datasets", "busy")):
        status, _, error = medmllm(*words)
        assert status == 1 and "got 'busy'. Did you mean busi?" in error and len(error) < 200


@pytest.mark.parametrize(
    "text",
    ["[" * 2000, "name: x\ntitle: X\nlayout: busi\nmodality: y\nclasses: {a: [], b: []}\npositive: [sick]\n"],
    ids=["brackets", "list as positive class"],
)
def test_a_faulty_file_of_the_user_costs_itself_alone(
    medmllm: Medmllm, own_tasks: Path, text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a declaration and of a task: it is named, and every command knows everything else."""
    monkeypatch.setattr("medmllm_plugins.data.loading.catalogue._logged", set())
    (own_tasks / "datasets").mkdir(parents=True)
    (own_tasks / "datasets" / "faulty_set.yaml").write_text(text)
    (own_tasks / "faulty_task.yaml").write_text(text)
    index: dict[str, dict[str, Any]] = {}
    add_tasks(index)
    assert {"med_cls_demo", "med_probe_demo", "med_cls", "med_cls_busi"} <= set(index)
    assert [record for record in caplog.records if "faulty_set.yaml" in record.getMessage()]
    status, listed, err = medmllm("task", "list")
    assert status == 0 and "med_cls_demo" in listed and "faulty_task.yaml" in err
    status, listed, _ = medmllm("datasets", "--all")
    assert status == 0 and "demo: " in listed and "busi: " in listed
    findings = merge_missing_sets(examine())
    assert [line for finding in findings if (line := finding.detail) and "faulty_set.yaml" in line]
    assert [line for finding in findings if (line := finding.detail) and "faulty_task.yaml" in line]


def test_folds_by_other_words(medmllm: Medmllm, images: Path, tmp_path: Path) -> None:
    words = ["dev", "holdout", "external", "train", "train", "dev", "holdout", "train"]
    rows = [(f"{i}.png", ["Covid", "Covd", "normal"][i % 3], words[i]) for i in range(8)]
    labels = table(tmp_path / "l.csv", rows, ("image", "label", "split"))
    command = ("task", "new", "folds", "--images", images, "--labels", labels, "--group", "none")
    status, _, error = medmllm(*command)
    assert status == 1 and "got 'external' in 1 row" in error and "--fold-map external=FOLD" in error
    status, _, error = medmllm(*command, "--fold-map", "external=nowhere")
    assert status == 1 and "got 'external=nowhere'" in error
    status, said, _ = medmllm(*command, "--fold-map", "external=test")
    assert status == 0, said
    assert "chosen     folds: the column 'split' (dev = validation, external = test, holdout = test)" in said
    assert "warning    Classes with almost the same name: 'Covd' (3) and 'Covid' (3)" in said
    assert "warning    The test fold has 3 images" in said
    assert [line.split()[-3:] for line in said.splitlines() if line.strip().startswith("all")] == [["3", "2", "3"]]
    assert task_settings("folds").dataset.options["fold_names"] == {"external": "test"}


def test_folders_that_look_like_folds_are_named(medmllm: Medmllm, tmp_path: Path) -> None:
    for index in range(12):
        fold, label = ("train", "train", "test")[index % 3], "ab"[index // 6]
        write_picture(tmp_path / "set" / fold / label / f"{index}.png", key=f"fold {index}")
    status, said, _ = medmllm("task", "new", "own", "--images", tmp_path / "set", "--labels", "folders")
    assert status == 0 and "folds: the folders 'test', 'train' look like folds and are not used" in said


def test_further_columns_are_offered_and_declared(
    medmllm: Medmllm, images: Path, tmp_path: Path, own_tasks: Path
) -> None:
    rows = [(f"{index}.png", "ab"[index % 2], "fm"[index // 2 % 2], index) for index in range(8)]
    labels = table(tmp_path / "own.csv", rows, ("file", "label", "sex", "age"))
    words = ("task", "new", "own", "--images", images, "--labels", labels)
    status, output, _ = medmllm(*words)
    assert status == 0 and "further columns: not used; --attributes sex,age lets med_probe" in output
    status, output, _ = medmllm(*words, "--attributes", "sex", "--overwrite")
    assert status == 0 and "further columns" not in output
    spec = task_settings("own").dataset
    assert spec.options["attribute_columns"] == ["sex"]
    assert {document.attributes for document in load_dataset(spec).documents} == {(("sex", "f"),), (("sex", "m"),)}
    status, _, errors = medmllm(*words, "--attributes", "sex,label", "--overwrite")
    assert status != 0 and "Expected --attributes to be among the columns" in errors
