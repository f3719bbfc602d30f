"""A user's own images, from ``medmllm task new`` to an evaluation by name and by path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.image_files import write_picture

from medmllm_plugins.cli import main
from medmllm_plugins.manager import reset


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
    assert evaluated.manifest["tasks"]["own_lesions"]["dataset"] == "own_lesions"
    by_path = evaluate(tmp_path / "again", tasks=[str(own)], task_manager=manager)
    assert by_path.values("own_lesions") == evaluated.values("own_lesions")
