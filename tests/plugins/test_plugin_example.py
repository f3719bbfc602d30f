"""examples/plugin and docs/plugins.md say the same, and work."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from support.plugin_site import Site

from medmllm_plugins.plugins.hook_registry import HOOKS
from medmllm_plugins.plugins.manager import discover

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plugin"


def test_example_plugin_is_what_it_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    entry_points = project["project"]["entry-points"]["medmllm_plugins"]
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    site.metadata(project["project"]["name"], f"[medmllm_plugins]\n{lines}", project["project"]["version"])
    monkeypatch.syspath_prepend(str(EXAMPLE))
    site.modules.append("medmllm_example")
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    (plugin,) = (plugin for plugin in manager.describe()["plugins"] if plugin["name"] == "example")
    assert plugin["distribution"] == "medmllm-example" and plugin["models"] == ["example_vl"]
    assert manager.models()["example_vl"].sizes == {"tiny": "demo", "3b": "shiym2000/MedM-VL-2D-3B-en"}
    entry = manager.tasks()["med_cls_example"]
    assert entry.plugin == "example"
    assert manager.dataset_folders()[1] == EXAMPLE / "medmllm_example" / "tasks" / "datasets"
    from medmllm_plugins.data.core.dataset_spec import read_spec

    assert read_spec(EXAMPLE / "medmllm_example" / "tasks" / "datasets" / "example.yaml").name == "example"
    files = {path for path in EXAMPLE.rglob("*.yaml")}
    package = EXAMPLE / "medmllm_example"
    packed = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["medmllm_example"]
        for path in package.glob(pattern)
    }
    assert files == packed


def test_documentation_shows_the_example_as_it_is() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name in (
        "pyproject.toml",
        "medmllm_example/__init__.py",
        "medmllm_example/probes.py",
        "medmllm_example/tasks/med_cls_example.yaml",
        "medmllm_example/tasks/datasets/example.yaml",
    ):
        assert (EXAMPLE / name).read_text(encoding="utf-8").strip() in text, name
    models = ROOT / "examples" / "plugin-model" / "medmllm_of_mine"
    assert (models / "__init__.py").read_text(encoding="utf-8").strip() in text
    convnet = (models / "convnet.py").read_text(encoding="utf-8")
    assert convnet[convnet.index("class ConvFamily") : convnet.index("class VisionConfig")].strip() in text
    for hook in HOOKS:
        assert f"`{hook}" in text
