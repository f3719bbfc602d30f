"""Fixtures about the folder in which a test runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a folder of its own, since a run without ``run_dir`` makes its folder where it stands."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MEDMLLM_DATA", "MEDMLLM_STRICT", "MEDMLLM_DISABLE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def everything(tmp_path: Path) -> Callable[[], set[str]]:
    """Says which files and folders there are below the test's folder, to show that nothing was left behind."""

    def listed() -> set[str]:
        return {
            os.path.relpath(os.path.join(root, name), tmp_path)
            for root, folders, files in os.walk(tmp_path)
            for name in (*folders, *files)
        }

    return listed
