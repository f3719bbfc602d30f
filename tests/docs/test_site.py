"""The documentation site builds without a warning, and its generated page is that of the commands as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medmllm_plugins.cli import command_reference

ROOT = Path(__file__).parents[2]


def test_the_reference_of_commands_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "reference" / "commands.md"
    assert command_reference.main([str(page), "--check"]) == 0
    other = tmp_path / "commands.md"
    other.write_text(page.read_text("utf-8").replace("Print JSON.", "Print."), encoding="utf-8")
    assert command_reference.main([str(other), "--check"]) == 1 and "older" in capsys.readouterr().out
    assert command_reference.main([str(other)]) == 0
    assert other.read_text("utf-8") == page.read_text("utf-8")
    assert command_reference.main([]) == 2


class Links(HTMLParser):
    """Addresses and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag == "a" and values.get("href"):
            self.targets.append(str(values["href"]))
        if tag in ("script", "link", "img") and (address := values.get("src") or values.get("href")):
            self.loaded.append(address)


def read(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text("utf-8"))
    return links


@pytest.mark.slow
def test_the_site_builds_with_its_notebooks_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # The notebook starts lmms-eval, which stands beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Without the theme's notice of another program.
    environment = {**os.environ, "PATH": path, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "WARNING -" not in built.stderr, built.stderr[-3000:]
    pages = {page.resolve(): read(page) for page in (tmp_path / "site").rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 30
    for page, links in pages.items():
        assert [item for item in links.loaded if item.startswith(("http:", "https:", "//"))] == [], page.name
        for target in links.targets:
            path_part, _, anchor = target.partition("#")
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            file = (page.parent / path_part).resolve() if path_part else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file in pages:
                assert anchor in pages[file].ids, f"{page.name}: {target}"
    notebook = next(page for page in pages if page.name == "read-a-run.html").read_text("utf-8")
    assert "llm.norm" in notebook and "image/png" in notebook, "outputs of the notebook are missing"
