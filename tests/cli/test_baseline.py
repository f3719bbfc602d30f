"""``medmllm baseline``: run folders that ``compare`` takes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmllm_plugins.cli.app import main
from medmllm_plugins.plugins.manager import reset
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.utils import progress


@pytest.fixture(autouse=True)
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Images whose class is their brightness, as the user's own task ``bright``."""
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path / "tasks"))
    monkeypatch.delenv("MEDMLLM_DATA", raising=False)
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = ["image,label,patient,fold"]
    folds = ("train", "train", "train", "validation", "test")
    for index in range(40):
        values = generator.uniform(0, 100, (30, 30)) + 100 * (index % 2)
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
        rows.append(f"{index},{('dark', 'bright')[index % 2]},p{index // 2 % 15},{folds[index // 2 % 5]}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    reset()
    assert (
        main(["task", "new", "bright", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "t.csv")]) == 0
    )
    reset()
    yield
    reset()


@pytest.fixture
def baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["baseline", "--output", str(tmp_path / "out"), *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def folder(said: str) -> Path:
    return Path(said.splitlines()[-1].removeprefix("Details: "))


def test_run_folders_that_compare_takes(
    baseline: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = baseline("bright", "bright:order=varied", "--method", "majority")
    assert status == 0 and "bright: accuracy 50.0%" in said and "bright:order=varied: " in said
    first = folder(said)
    status, said, _ = baseline("bright", "bright:order=varied")
    second = folder(said)
    assert status == 0 and "bright: accuracy 100.0%" in said
    run = load_run(second)
    assert set(run.outcomes) == {"bright", "bright:order=varied"}
    assert len(run.outcomes["bright"]) == 8 and len(run.outcomes["bright:order=varied"]) == 16
    entry = run.manifest.tasks["bright"]
    assert entry.baseline is not None and entry.metrics is not None
    assert entry.baseline["method"] == "pixels" and entry.baseline["trained_on"] == 24
    assert entry.metrics["auroc"].value == 1.0 and entry.dataset_fingerprint and entry.folds_hash
    assert {path.name for path in second.iterdir()} >= {
        "manifest.json",
        "bright.metrics.json",
        "bright.outcomes.jsonl",
        "bright.folds.json",
    }
    assert main(["compare", str(first), str(second), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert [comparison["accuracy"]["value"] for comparison in compared] == [0.5, 0.5]


def test_it_says_how_far_it_is(baseline: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIRST", 0.0), ("EVERY", 0.0), ("BEAT", 0.0005)):
        monkeypatch.setattr(progress, name, value)
    status, _, error = baseline("bright")
    assert status == 0 and "bright: reading images: " in error
    assert "bright: logistic regression: 5 fits done" in error


def test_what_a_classifier_cannot_be_tested_on(baseline: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for words, expected in (
        (["bright:folds=train"], "expected the test fold alone"),
        (["bright:image=blank"], "expected image=shown"),
        (["med_cls_nothing"], "Expected the name of a task"),
        (["bright", "med_cls_busi"], "MEDMLLM_DATA"),
        (["bright", "--method", "forest"], "Expected a method among"),
    ):
        status, _, error = baseline(*words)
        assert status == 1 and expected in error
    assert not (tmp_path / "out").exists()


def test_a_leak_is_told(baseline: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(table.read_text().replace(",p4,", ",p0,"))  # p0 trains, p4 is tested
    status, said, _ = baseline("bright")
    assert status == 0 and "Warning: bright: " in said and "share a group" in said
    assert "share a group" in load_run(folder(said)).manifest.tasks["bright"].leaks


def test_no_fold_to_learn_from(baseline: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(table.read_text().replace(",train", ",test").replace(",validation", ",test"))
    status, _, error = baseline("bright", "--method", "majority")
    assert status == 1 and "expected documents in the train fold, to learn from, got none" in error
