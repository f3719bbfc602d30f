"""Guides, examples and templates import public names alone, and the page of public names is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import medmllm_plugins
from medmllm_plugins import testing
from medmllm_plugins.utils.import_by_name import import_by_name

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "public-names.md"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.py") if path.parent != ROOT / "examples")
"""Files of the example packages. Scripts in ``examples`` itself train the checkpoints that ship with this package."""
TEMPLATES = sorted(
    Path(str(item)) for item in files("medmllm_plugins.plugins").joinpath("templates").iterdir()
    if item.name.endswith(".py.jinja")
)  # fmt: skip
DOTTED = re.compile(r"\bmedmllm_plugins(?:\.\w+)+(?::\w+)?")


def listed() -> set[str]:
    """Public names as dotted paths, those of the package itself with its name in front."""
    rows = [line.split(" | ")[0] for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`([\w.:]+)`", row)}
    return {name if name.startswith("medmllm_plugins.") else f"medmllm_plugins.{name}" for name in names}


PUBLIC = listed()


def imported(source: str) -> Iterator[str]:
    """Dotted paths of what Python code imports from this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "medmllm_plugins")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medmllm_plugins":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private(source: str) -> list[str]:
    """What Python code imports that is not public."""
    return [name for name in imported(source) if name not in {*PUBLIC, "medmllm_plugins"} or "._" in name]


def python_blocks(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


def test_the_page_lists_what_the_package_exports() -> None:
    top = {name.removeprefix("medmllm_plugins.") for name in PUBLIC if name.count(".") == 1}
    assert top == set(medmllm_plugins.__all__)
    assert {f"medmllm_plugins.testing.{name}" for name in testing.__all__} <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_exists(name: str) -> None:
    if ":" in name:
        assert callable(import_by_name(name))
        return
    module, _, attribute = name.rpartition(".")
    parent = import_module(module)
    assert hasattr(parent, attribute) or import_module(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_guides_import_public_names(page: Path) -> None:
    assert not private(python_blocks(page))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_import_public_names(path: Path) -> None:
    assert not private(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_import_public_names(path: Path) -> None:
    source = re.sub(r"\{%.*?%\}\n?", "", path.read_text(encoding="utf-8"))
    assert not private(re.sub(r"\{\{.*?\}\}", "value", source))


@pytest.mark.parametrize(
    "path",
    [*(ROOT / "examples").rglob("*.yaml"), ROOT / "docs" / "plugins.md", ROOT / "docs" / "library.md"],
    ids=lambda path: path.name,
)
def test_dotted_paths_in_guides_and_files_are_public(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    own = {match for match in DOTTED.findall(text) if not match.endswith((".py", ".json", ".md"))}
    assert not own - PUBLIC - {"medmllm_plugins.testing"}


@pytest.mark.parametrize(
    "source",
    [
        "from medmllm_plugins.probes.probe_methods import ProbeData",
        "from medmllm_plugins import _MODULES",
        "import medmllm_plugins.runtime.journal",
        "def f():\n    from medmllm_plugins.testing.runner import run_checks",
    ],
)
def test_private_imports_are_found(source: str) -> None:
    """Else the tests above could not fail."""
    assert private(source)


def test_there_is_something_to_check() -> None:
    assert len(EXAMPLES) > 12 and len(TEMPLATES) > 12
    assert sum(len(list(imported(python_blocks(page)))) for page in PAGES) > 20
