"""``medmllm diagnose`` on runs of med_probe tasks: the same figures without a model, references, damaged folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host.conftest import PROBE_LIMIT, PROBE_TASK

from medmllm_plugins.cli.app import main
from medmllm_plugins.reference import pixels
from medmllm_plugins.results.seal import check_seal, write_seal

TASK, LIMIT = PROBE_TASK, PROBE_LIMIT


@pytest.fixture
def copied(probed: Any, tmp_path: Path) -> Path:
    """A run folder that a test may spoil."""
    return Path(shutil.copytree(probed.folder, tmp_path / "run"))


def test_diagnose_gives_the_same_without_a_model(
    probed: Any, copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = json.loads((copied / f"{TASK}.probes.json").read_text(encoding="utf-8"))
    assert main(["diagnose", str(copied), "--json"]) == 0
    assert check_seal(copied, lambda _: True).sealed and not check_seal(copied, lambda _: True).differing
    (after,) = json.loads(capsys.readouterr().out)
    for record in (before, after):
        record.pop("seconds")
    assert after == before
    assert main(["diagnose", str(copied), "--output", str(tmp_path / "other"), "--grid", "1e-2", "--width", "16"]) == 0
    printed = capsys.readouterr().out
    assert "Feature Health" in printed and "connector" in printed
    assert json.loads((tmp_path / "other" / f"{TASK}.probes.json").read_text())["options"]["width"] == 16


@pytest.mark.slow
def test_a_reference_beside_the_run_judges_the_tower(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("STRENGTHS", (1e-4,)),
        ("MAX_TRAIN_DOCUMENTS", 300),
        ("_STEPS", 50),
    ):  # a quick baseline will do
        monkeypatch.setattr(pixels, name, value)
    assert main(["baseline", "med_cls_demo", "--method", "pixels", "--output", str(tmp_path / "base")]) == 0
    (reference,) = (tmp_path / "base" / "medmllm_runs").iterdir()
    capsys.readouterr()
    assert main(["diagnose", str(copied), "--json", "--reference", str(reference)]) == 0
    (named,) = json.loads(capsys.readouterr().out)
    shutil.copytree(reference, copied.parent / "beside")
    assert main(["diagnose", str(copied), "--json"]) == 0
    (beside,) = json.loads(capsys.readouterr().out)
    for record in (named, beside):
        effect = record["diagnosis"]["effects"][0]
        # Pixels alone tell little of phantoms; the tower hands over far more, which such a reference cannot judge.
        assert record["reference_name"] == "baseline pixels" and effect["loss"]["value"] < -0.3
        assert effect["verdict"] == "cannot tell" and "cannot rule out a loss" in effect["why"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda manifest: manifest["model"].update(fingerprint="another"), "features of the run's own model"),
        (
            lambda manifest: manifest["tasks"][TASK].update(dataset_fingerprint="another"),
            "features of the run's own data set",
        ),
    ],
)
def test_features_of_another_model_or_data_set_are_refused(
    copied: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    spoil(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert main(["diagnose", str(copied)]) == 1
    assert "manifest.json (" in capsys.readouterr().err  # it is not the one that was sealed
    write_seal(copied)
    assert main(["diagnose", str(copied)]) == 1
    assert message in capsys.readouterr().err


def test_a_run_without_features_says_how_to_get_them(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(demo.folder)]) == 1
    assert "Run one: lmms-eval --model from_command_line --tasks med_probe_demo" in capsys.readouterr().err
    assert main(["diagnose", str(demo.folder / "nowhere")]) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda store: next((store / "index").iterdir()).unlink(), "is missing (1 such files in all)"),
        (lambda store: swap_labels(store / "store.json"), "store.json: the file is damaged or of another store"),
        (lambda store: (store / "seal.json").unlink(), "if the run was stopped, start the same command again"),
        (lambda store: change_json(store / "store.json", medmllm_features=7), "got version 7"),
    ],
    ids=["part of the index", "labels in another order", "seal", "another version"],
)
def test_a_store_that_is_not_whole_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copied / "features" / TASK)
    assert main(["diagnose", str(copied)]) == 1
    assert f"features/{TASK}/" in (err := capsys.readouterr().err) and "sealed" in err
    write_seal(copied)
    assert main(["diagnose", str(copied)]) == 1
    assert message in capsys.readouterr().err


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def swap_labels(path: Path) -> None:
    change_json(path, labels=json.loads(path.read_text(encoding="utf-8"))["labels"][::-1])


def test_what_diagnose_cannot_do_is_said_before_anything_is_fitted(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for words, message in (
        (["--device", "nope"], "Expected `device` to be"),
        (["--output", str(tmp_path / "file")], "Expected `output` to be a folder"),
        (["--layers", "connector"], "Name a folder with --output"),
        (["--pooling", "last"], "Name a folder with --output"),
        (["--reference", str(copied)], "got the run itself"),
        (["--folds", "-1"], "(folds)"),
        (["--grid", "nan"], "(grid)"),
    ):
        assert main(["diagnose", str(copied), *words]) == 1
        assert message in capsys.readouterr().err
    path = copied / f"{TASK}.outcomes.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-3]), encoding="utf-8")
    assert main(["diagnose", str(copied)]) == 1
    assert f"{path.name} (" in capsys.readouterr().err  # it is not the one that was sealed
    write_seal(copied)
    assert main(["diagnose", str(copied)]) == 1
    assert f"expected {len(lines)} scored answers, as manifest.json says, got" in capsys.readouterr().err
    path.unlink()
    write_seal(copied)
    assert main(["diagnose", str(copied)]) == 1
    assert f"{path.name}: expected the scored answers" in capsys.readouterr().err


def test_a_stopped_run_is_to_be_started_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "features")
    change_json(copied / "manifest.json", finished=None)
    (copied / "seal.json").unlink()
    assert main(["diagnose", str(copied)]) == 1
    assert "start the same command again" in capsys.readouterr().err


def test_damaged_features_are_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((copied / "features" / TASK).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert main(["diagnose", str(copied)]) == 1
    assert "is damaged" in capsys.readouterr().err
