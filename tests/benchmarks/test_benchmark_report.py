"""The benchmark ``report``: both sides give one page, and a difference between them is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.record import Settings
from medmllm_plugins.errors import ModelError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MODELS", 2)
    monkeypatch.setattr(report, "LAYERS", 3)
    monkeypatch.setattr(report, "DOCUMENTS", 30)


def test_both_sides_make_the_same_page() -> None:
    record = report.run(Settings(name="report", device="cpu", size=None, repeats=1))
    assert record.details["thousand_documents_shown"] == 31 and record.details["page_mb"] < 1
    assert record.details["thousand_documents_under_10_mb"] and record.details["at_once_under_5_s"]


def test_another_page_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(_: object, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("other")

    monkeypatch.setattr(report, "serial", other)
    with pytest.raises(ModelError, match="same page"):
        report.run(Settings(name="report", device="cpu", size=None, repeats=1))
