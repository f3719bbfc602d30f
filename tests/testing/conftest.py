"""Every test runs in a folder of its own; plugins are installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.folders import own_folder  # noqa: F401 - fixture
from support.plugin_site import Site

from medmllm_plugins.plugins.manager import reset


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    reset()
    made = Site(path)
    yield made
    reset()
    for module in made.modules:
        sys.modules.pop(module, None)
