"""A user's own images, from ``medmllm task new`` to an evaluation by name and by path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger
from support.dicom_files import MARKER, write_series
from support.image_files import write_picture
from support.tiny_medm_vl import write_ct_checkpoint

from medmllm_plugins.cli.app import main
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.plugins.manager import reset
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.testing.tiny_families import write_family


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    reset()
    rows = ["image,label,patient"]
    for index in range(9):
        write_picture(tmp_path / "images" / f"{index}.png", key=f"host {index}", size=(64, 64))
        rows.append(f"{index}.png,{'round mass' if index % 2 else 'no finding'},p{index // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    words = [
        "task",
        "new",
        "own_lesions",
        "--images",
        str(tmp_path / "images"),
        "--labels",
        str(tmp_path / "labels.csv"),
    ]
    assert main(words) == 0
    reset()
    yield tmp_path / "tasks" / "own_lesions.yaml"
    reset()


def test_by_name_with_arguments_and_by_path(own: Path, evaluate: Callable[..., Any], tmp_path: Path) -> None:
    from lmms_eval.tasks import TaskManager

    manager = TaskManager()  # not the session's, which was made before this task
    evaluated = evaluate(tmp_path / "out", tasks=["own_lesions", "own_lesions:protocol=letter"], task_manager=manager)
    for task in ("own_lesions", "own_lesions:protocol=letter"):
        assert len(evaluated.samples(task)) == 2  # of nine images of five patients
    assert evaluated.manifest["tasks"]["own_lesions"]["settings"]["dataset"] == "own_lesions"
    by_path = evaluate(tmp_path / "again", tasks=[str(own)], task_manager=manager)
    assert by_path.values("own_lesions") == evaluated.values("own_lesions")


def test_nothing_of_a_dicom_header_but_geometry_reaches_a_file_or_a_log(
    evaluate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    generator = np.random.default_rng(0)
    for index in range(6):
        folder = tmp_path / "scans" / ("round mass", "no finding")[index % 2] / f"case{index}"
        write_series(folder, generator.integers(-1000, 1000, (4, 16, 16)).astype(np.int16))
    with caplog.at_level("DEBUG"):
        assert main(["task", "new", "scans", "--images", str(tmp_path / "scans"), "--labels", "folders"]) == 0
        assert main(["datasets", "--check", "scans"]) == 0
        evaluated = evaluate(tmp_path / "out", tasks=[str(tmp_path / "tasks" / "scans.yaml")])
        (tmp_path / "scans" / "no finding" / "case1" / "IM0001.dcm").write_bytes(b"")
        assert main(["datasets", "--check", "scans"]) == 0  # left out, and listed
    reset()
    assert len(evaluated.samples("scans")) == 2
    written = [path for path in tmp_path.rglob("*") if path.is_file() and (tmp_path / "scans") not in path.parents]
    assert len(written) >= 6
    said = capfd.readouterr()
    logged = [said.out, said.err, caplog.text, repr(evaluated.returned)]
    for text in [*logged, *(path.read_text(encoding="utf-8", errors="replace") for path in written)]:
        assert MARKER not in text and "19010203" not in text and "1.2.826" not in text


def test_a_model_of_volumes_gets_volumes(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    generator = np.random.default_rng(0)
    for index in range(6):
        folder = tmp_path / "scans" / ("benign", "malignant")[index % 2] / f"case{index}"
        write_series(folder, generator.integers(-1000, 1000, (4, 16, 16)).astype(np.int16), rescale=(0, 1))
    words = ["task", "new", "ct_scans", "--images", str(tmp_path / "scans"), "--labels", "folders", "--unit", "HU"]
    assert main(words) == 0
    task = str(tmp_path / "tasks" / "ct_scans.yaml")
    model = f"pretrained={write_ct_checkpoint(tmp_path / 'ct')},device=cpu"
    evaluated = evaluate(tmp_path / "out", model="medm_vl_ct", model_args=model, tasks=[task])
    assert len(evaluated.samples("ct_scans")) == 2 and "auroc,none" in evaluated.values("ct_scans")
    with pytest.raises(MedMLLMError, match="since the model reads volumes"):
        evaluate(tmp_path / "no", model="medm_vl_ct", model_args=model, tasks=["med_cls_demo"], limit=2)
    # Models of several images are shown slices, one picture each; those of one, a montage.
    folder = write_family("qwen2_5_vl", tmp_path / "qwen")
    slices = evaluate(tmp_path / "hf", model="medmllm_hf", model_args=f"pretrained={folder},device=cpu", tasks=[task])
    assert slices.manifest["model"]["name"] == "medmllm_hf" and len(slices.samples("ct_scans")) == 2
    reset()


@pytest.mark.slow
def test_own_images_are_explained(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_checks: None
) -> None:
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    for index in range(8):
        label = ("benign", "malignant")[index % 2]
        write_picture(tmp_path / "scans" / label / f"{index}.png", f"own {index}", (60, 40))
    reset()
    assert main(["task", "new", "own_scans", "--images", str(tmp_path / "scans"), "--labels", "folders"]) == 0
    reset()
    task = "med_attr_own_scans:n=1:method=layer_activation:layer=vision.0"
    evaluated = evaluate(tmp_path / "out", tasks=[task], batch_size=4, task_manager=TaskManager())
    (index,) = evaluated.folder.glob("attributions/*/index.json")
    entries = json.loads(index.read_text(encoding="utf-8"))["entries"]
    assert {entry["label"] for entry in entries} == {"benign", "malignant"}
    words = ["attribute", str(evaluated.folder), "--ids", entries[0]["id"], "--method", "saliency"]
    assert main(words) == 0  # its settings are found by its name
    assert task_settings("med_probe_own_scans").features is not None
    reset()


def test_answers_that_cannot_be_read_are_said(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo knows phantoms; of anything else its numbers mean nothing, and log and manifest say so."""
    lines: list[str] = []
    for index in range(9):
        write_picture(tmp_path / "eyes" / ("healthy", "glaucoma")[index % 2] / f"{index}.png", key=f"eye {index}")
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    assert main(["task", "new", "eyes", "--images", str(tmp_path / "eyes"), "--labels", "folders"]) == 0
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO")
    try:
        evaluated = evaluate(tmp_path / "out", tasks=[str(tmp_path / "tasks" / "eyes.yaml")])
    finally:
        logger.remove(sink)
        reset()
    count = len(evaluated.samples("eyes"))
    assert evaluated.values("eyes")["parsed,none"] == 0, "the demo is expected not to know these words"
    (line,) = [line for line in lines if "No answer could be read" in line]
    assert f"No answer could be read (0 of {count}). The demo model only knows phantoms." in line
    assert "majority class" not in "".join(line for line in lines if "eyes: " in line)
    assert evaluated.manifest["tasks"]["eyes"]["unreadable"] in line
    assert any("The test fold has" in warning for warning in evaluated.manifest["tasks"]["eyes"]["warnings"])
