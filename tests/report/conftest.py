"""Pages with no or few figures, for tests of all else on them: drawing takes most of a page's time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import start_browser

from medmllm_plugins.report import assemble
from medmllm_plugins.report.sections import FIGURES


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "draw_all", lambda jobs: [None for _ in jobs])


@pytest.fixture
def accuracy_figure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIGURES.keys() - {"accuracy"}:
        monkeypatch.delitem(FIGURES, name)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with start_browser(tmp_path / "profile") as driver:
        yield driver
