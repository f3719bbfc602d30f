"""What is relied on of lmms-eval: the list holds for the installed release, names every difference, and is complete."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medmllm_plugins.host
from medmllm_plugins.cli import doctor
from medmllm_plugins.host import host_contract
from medmllm_plugins.host.host_contract import SEAMS, Seam, host_differences

ONLY_TYPES = {"lmms_eval.api.instance.Instance", "lmms_eval.api.model.lmms", "lmms_eval.api.task.ConfigurableTask"}
"""Classes of the host that are annotations or bases; their methods are listed one by one."""
ONLY_TYPES |= {"lmms_eval.api.task.ConfigurableMessagesTask"}


def test_the_installed_host_is_as_expected() -> None:
    assert host_differences() == []


@pytest.mark.parametrize(
    ("seam", "part"),
    [
        (Seam("lmms_eval.tasks", "TaskManager.match_all", ("self",), "replaced"), "match_all"),
        (Seam("lmms_eval.no_such_module", "main", (), "called"), "no_such_module"),
        (Seam("lmms_eval.tasks", "TaskManager.match_tasks", ("self", "names"), "replaced"), "('self', 'names')"),
        (Seam("lmms_eval.tasks", "TaskManager.match_tasks", ("task_list", "self"), "replaced"), "task_list"),
    ],
)
def test_a_difference_is_named_and_reported(seam: Seam, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert part in seam.difference()
    monkeypatch.setattr(host_contract, "SEAMS", (seam,))
    broken = [finding for finding in doctor.examine() if finding.state == "broken"]
    assert [finding.what for finding in broken] == ["lmms-eval"] and part in broken[0].detail


def test_every_import_from_the_host_is_listed() -> None:
    (folder,) = medmllm_plugins.host.__path__
    imported = set()
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmms_eval"):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    listed = {f"{seam.module}.{seam.path}" for seam in SEAMS}
    classes = {name.rpartition(".")[0] for name in listed}
    assert len(imported) > 8
    assert imported - listed - classes - ONLY_TYPES == set()
