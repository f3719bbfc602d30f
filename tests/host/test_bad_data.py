"""Bad data, met through the host: found before a model is loaded, all in one error, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.image_files import cut, write_picture

from medmllm_plugins.cli.app import main
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import DataError

BUSI = Path("busi") / "Dataset_BUSI_with_GT"


@pytest.fixture
def fault(
    evaluate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    everything: Callable[[], set[str]],
) -> Callable[..., str]:
    """Evaluate with our model, expect a data error, and return its message."""

    def load(options: Any) -> None:
        raise AssertionError("the model was loaded although the data are bad")

    monkeypatch.setattr("medmllm_plugins.models.formats.medm_vl.load", load)

    def call(task: str = "med_cls_busi") -> str:
        before = everything()
        with pytest.raises(DataError) as caught:
            evaluate(tmp_path / "out", tasks=[task])
        # No run folder, no output folder, nothing among the data.
        assert everything() == before
        return str(caught.value)

    return call


def test_sound_data_reach_the_model(evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path) -> None:
    """Else everything below would pass for want of sound data."""
    assert evaluate(tmp_path / "out", tasks=["med_cls_busi"], limit=1).manifest["model"] is not None


def test_every_fault_is_in_one_error(data_tree: Path, fault: Callable[..., str]) -> None:
    folder = data_tree / BUSI
    cut(folder / "benign" / "benign (1).png", 0.5)
    (folder / "benign" / "benign (2).png").write_bytes(b"")
    (folder / "malignant" / "malignant (3).png").write_text("an image, honestly")
    write_picture(folder / "malignant" / "malignant (4).jpg")
    write_picture(folder / "suspicious" / "suspicious (1).png")
    for image in (folder / "normal").iterdir():
        image.unlink()
    message = fault()
    assert "6 faults" in message.splitlines()[0]
    for path, reason in {
        "benign/benign (1).png": "truncated",
        "benign/benign (2).png": "0 bytes",
        "malignant/malignant (3).png": "not one of",
        "malignant/malignant (4).jpg": "2 files with one id",
        "suspicious": "unexpected class folder",
        "normal": "empty class folder",
    }.items():
        assert any(str(folder / path) in line and reason in line for line in message.splitlines()), path


FAULTS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: cut(folder / "benign" / "benign (1).png", 0.5),
    "0 bytes": lambda folder: (folder / "benign" / "benign (1).png").write_bytes(b""),
    "not one of": lambda folder: (folder / "benign" / "benign (1).png").write_text("no image"),
    "unexpected class folder": lambda folder: write_picture(folder / "cyst" / "cyst (1).png"),
    "empty class folder": lambda folder: [path.unlink() for path in (folder / "normal").iterdir()],
    "files with one id": lambda folder: write_picture(folder / "benign" / "benign (1).jpg"),
    "expected a class folder": lambda folder: (folder / "normal").rename(folder.parent / "normal"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_one_fault_alone_is_enough(data_tree: Path, fault: Callable[..., str], reason: str) -> None:
    FAULTS[reason](data_tree / BUSI)
    message = fault()
    assert reason in message and "1 fault in" in message
    assert dataset_specs()["busi"].download in message


def test_a_group_stops_at_the_bad_set(data_tree: Path, fault: Callable[..., str]) -> None:
    (data_tree / "covid19_ct" / "CT_COVID" / "CT_COVID0-p0.png").write_bytes(b"")
    assert "CT_COVID0-p0.png" in fault("med_cls")


@pytest.mark.parametrize("name", ["busi", "covid19_ct"])
def test_without_the_variable_the_error_tells_all_that_is_needed(fault: Callable[..., str], name: str) -> None:
    message = fault(f"med_cls_{name}")
    spec = dataset_specs()[name]
    assert "environment variable MEDMLLM_DATA" in message and f"{spec.folder}/" in message
    assert spec.download in message and "export MEDMLLM_DATA=" in message


def test_a_folder_without_the_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., str]
) -> None:
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    assert str(tmp_path / "busi") in fault()
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path / "nowhere"))
    assert f"not even {tmp_path / 'nowhere'}" in fault()
    (tmp_path / "busi").write_text("a file")
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    assert "a file of that name" in fault()


def test_too_few_images_for_folds_are_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., str]
) -> None:
    """Two copies of one picture are one group, which cannot be in three folds."""
    for label in ("benign", "malignant", "normal"):
        write_picture(tmp_path / "busi" / label / f"{label} (1).png", "the same")
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    assert "groups" in fault()


def test_faults_are_found_for_the_hosts_models_too(
    evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path, everything: Callable[[], set[str]]
) -> None:
    (data_tree / BUSI / "benign" / "benign (1).png").write_bytes(b"")
    before = everything()
    with pytest.raises(DataError, match="0 bytes"):
        evaluate(tmp_path / "out", model="dummy", model_args="", tasks=["med_cls_busi"])
    assert everything() == before


def damage_masks(data_tree: Path) -> None:
    """A mask beside each image, two of them damaged, of images in any folds."""
    for path in sorted((data_tree / BUSI).rglob("*.png")):
        write_picture(path.with_name(f"{path.stem}_mask.png"))
    for label in ("benign", "malignant"):
        for path in (data_tree / BUSI / label).glob("*_mask.png"):
            cut(path, 0.5)


def test_masks_are_read_with_the_set_where_they_are_needed(
    evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path, fault: Callable[..., str]
) -> None:
    damage_masks(data_tree)
    message = fault("med_attr_busi")
    assert "expected readable lesion masks" in message and "on_error=skip" in message
    assert "_mask.png" in message and "truncated" in message


@pytest.mark.slow
def test_masks_that_cannot_be_read_are_left_out_and_listed(
    evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path, few_checks: None
) -> None:
    damage_masks(data_tree)
    assert evaluate(tmp_path / "cls", tasks=["med_cls_busi"], limit=1).manifest["finished"]
    task = "med_attr_busi:n=1:method=layer_activation:layer=vision.0:on_error=skip"
    evaluated = evaluate(tmp_path / "attr", tasks=[task], batch_size=8)
    assert any("_mask.png" in path for path in evaluated.manifest["tasks"][task]["skipped"])
    assert evaluated.manifest["tasks"][task]["explanations"]["documents"] == 3
    (index,) = evaluated.folder.glob("attributions/*/index.json")
    entries = json.loads(index.read_text(encoding="utf-8"))["entries"]
    sound = {entry["label"]: entry["checks"]["area"] is not None for entry in entries}
    assert sound == {"benign": False, "malignant": False, "normal": True}
    for entry in entries:  # explained again, likewise
        assert main(["attribute", str(evaluated.folder), "--ids", entry["id"], "--method", "saliency"]) == 0
    again = [
        entry for entry in json.loads(index.read_text(encoding="utf-8"))["entries"] if entry["method"] == "saliency"
    ]
    assert {entry["label"]: entry["checks"]["area"] is not None for entry in again} == sound
