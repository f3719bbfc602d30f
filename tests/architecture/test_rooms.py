"""Imports run down the list of rooms, never up (docs/design.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medmllm_plugins

PACKAGE = Path(medmllm_plugins.__file__).parent

# Each may import itself and those before it.
ROOMS = (
    (
        "redaction",
        "errors",
        "environment",
        "places",
        "published",
        "hookspecs",
        "specs",
        "suggestions",
        "bounded_yaml",
        "taskfiles",
        "plugin_guard",
        "hook_results",
        "entry_points",
        "progress",
        "manager",
        "builtin",
    ),
    ("data",),
    ("answers",),
    ("metrics",),
    ("questions",),
    ("reference",),
    ("models",),
    ("capture",),
    ("probes",),
    ("attribution",),
    ("report",),
    ("host",),
    ("doctor", "commands", "cli"),
)
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
BARRED = {
    "data": {"torch", "transformers", "lmms_eval", "sklearn"},
    "answers": {"torch", "transformers", "lmms_eval"},
    "metrics": {"torch", "transformers", "lmms_eval"},
    "reference": {"transformers", "lmms_eval"},
    "models": {"lmms_eval"},
    "probes": {"lmms_eval"},
    "report": {"torch", "transformers", "captum", "lmms_eval"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "tasks" not in path.relative_to(PACKAGE).parts[:1])


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("medmllm_plugins.") and name.count(".") >= 1}
    upward = sorted(name for name in ours & set(RANK) if RANK[name] > RANK[here])
    assert not upward, f"{path} imports {upward}"
    top = {name.split(".")[0] for name in names}
    if here not in ("host", "cli"):
        assert "lmms_eval" not in top
    barred = sorted(top & BARRED.get(here, set()))
    assert not barred, f"{path} imports {barred}"


def test_every_module_has_a_room() -> None:
    assert {room(path) for path in modules()} - {"__init__"} <= set(RANK)
