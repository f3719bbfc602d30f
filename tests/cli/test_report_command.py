"""``medmllm report``: runs at any depth, one headline a data set, JSON for scripts, and where the page is."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.cli.app import main

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("medmllm_plugins.report.assemble.draw_all", lambda jobs: [None for _ in jobs])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An ``--output_path`` of two evaluations, with the host's own files beside the runs."""
    folder = tmp_path / "results"
    for index, name in enumerate(("model-a", "model-b")):
        run = Folder(folder / "medmllm_runs" / f"run-{index}", name)
        run.answers("med_cls_toy", outcomes(seed=index))
        host = folder / name
        host.mkdir()
        (host / "20260101_results.json").write_text("{}")
    return folder


def test_the_output_folder_means_all_runs_below_it(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "-o", str(tmp_path / "r.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2, "one headline for the data set, and where the page is"
    assert "model-a" in lines[0] and "model-b" in lines[0]
    assert lines[-1].startswith(f"Report: {tmp_path / 'r.html'}.")


def test_runs_are_found_several_levels_below(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / "study" / "2026" / "june"
    deep.mkdir(parents=True)
    results.rename(deep / "results")
    unrelated = tmp_path / "study" / "web"
    unrelated.mkdir()
    (unrelated / "manifest.json").write_text('{"name": "an app"}')
    assert main(["report", str(tmp_path / "study" / "2026"), "-o", str(tmp_path / "r.html")]) == 0
    assert "model-b" in capsys.readouterr().out


def test_json_is_all_that_stands_on_standard_output(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "-o", str(tmp_path / "r.html"), "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record == json.loads((tmp_path / "r_files" / "report.json").read_text("utf-8"))
    assert record["medmllm_report"] == 2 and err.startswith(f"Report: {tmp_path / 'r.html'}")


@pytest.mark.parametrize("works", [True, False])
def test_the_page_is_opened_if_asked(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    opened: list[str] = []

    def browse(address: str) -> bool:
        opened.append(address)
        return works

    monkeypatch.setattr(webbrowser, "open", browse)
    assert main(["report", str(results), "-o", str(tmp_path / "r.html")]) == 0 and opened == []
    assert main(["report", str(results), "-o", str(tmp_path / "r.html"), "--open"]) == 0
    assert opened == [(tmp_path / "r.html").resolve().as_uri()]
    assert ("No browser could be started" in capsys.readouterr().err) != works
