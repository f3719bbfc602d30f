"""Plugins installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plugin_site import Site

from medmllm_plugins.plugins.manager import reset


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("MEDMLLM_STRICT", raising=False)
    monkeypatch.delenv("MEDMLLM_DISABLE", raising=False)
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    made = Site(path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh() -> Iterator[None]:
    reset()
    yield
    reset()
