"""Pages with no or few figures, for tests of all else on them: drawing takes most of a page's time."""

from __future__ import annotations

import pytest

from medmllm_plugins.report import assemble
from medmllm_plugins.report.sections import FIGURES


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "draw_all", lambda jobs: [None for _ in jobs])


@pytest.fixture
def accuracy_figure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIGURES.keys() - {"accuracy"}:
        monkeypatch.delitem(FIGURES, name)
