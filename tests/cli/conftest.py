"""The command ``medmllm`` in process, and plugins installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medmllm_plugins.cli import app
from medmllm_plugins.plugins.manager import reset

Medmllm = Callable[..., tuple[int, str]]


@pytest.fixture
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("MEDMLLM_DATA", "MEDMLLM_STRICT", "MEDMLLM_DISABLE"):
        monkeypatch.delenv(variable, raising=False)
    reset()
    yield
    reset()


@pytest.fixture
def medmllm(capsys: pytest.CaptureFixture[str]) -> Medmllm:
    """Run a command; returns its exit status and what it printed."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = app.main(list(words))
        return status, capsys.readouterr().out

    return call


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Put a throwaway distribution with one plugin module on the path, as an installer would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []

    def call(name: str, source: str) -> None:
        modules.append(f"throwaway_command_{name}")
        (site / f"{modules[-1]}.py").write_text(source, encoding="utf-8")
        info = site / f"{name}-3.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.1\n")
        (info / "entry_points.txt").write_text(f"[medmllm_plugins]\n{name} = {modules[-1]}\n")
        reset()

    yield call
    for module in modules:
        sys.modules.pop(module, None)
