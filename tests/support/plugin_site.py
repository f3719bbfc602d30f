"""Throwaway distributions with plugins, installed into a folder on ``sys.path``."""

from __future__ import annotations

from pathlib import Path

from medmllm_plugins.plugins import builtin
from medmllm_plugins.plugins.manager import Manager
from medmllm_plugins.plugins.plugin_records import Failure

BUILTIN = [spec.name for spec in builtin.medmllm_models()]
HEAD = """
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder

def model(name):
    return ModelSpec(name=name, summary="A model.", loader="nowhere.module:load")
"""


def models(*names: str) -> str:
    listed = ", ".join(f"model({name!r})" for name in names)
    return f"{HEAD}\n@hookimpl\ndef medmllm_models():\n    return [{listed}]\n"


def folder(path: str) -> str:
    return f"\n@hookimpl\ndef medmllm_tasks():\n    return [TaskFolder(path={path!r})]\n"


class Site:
    """A folder on ``sys.path`` into which throwaway distributions are put as an installer would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def add(self, distribution: str, source: str, *, plugin: str | None = None, version: str = "1.2") -> str:
        """Install a distribution with one module and one entry point; returns the module's name."""
        module = f"throwaway_{distribution.replace('-', '_')}"
        plugin = plugin or distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(source, encoding="utf-8")
        self.metadata(distribution, f"[medmllm_plugins]\n{plugin} = {module}\n", version)
        self.modules.append(module)
        return module

    def metadata(self, distribution: str, entry_points: str, version: str = "1.2") -> Path:
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        return info

    def tasks(self, name: str, **files: str | bytes) -> str:
        """Write ``NAME.yaml`` files into a new folder; returns its path."""
        where = self.path / name
        where.mkdir()
        for stem, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (where / f"{stem}.yaml").write_bytes(data)
        return str(where)


def only(manager: Manager, plugin: str) -> Failure:
    """The one failure of a plugin."""
    failures = [failure for failure in manager.failures if failure.plugin == plugin]
    assert len(failures) == 1, [str(failure) for failure in failures]
    return failures[0]


def broken_import(site: Site) -> None:
    """Install a plugin called faulty whose module cannot be imported."""
    site.add("faulty", "import a_module_that_is_not_there\n" + models("kept"))
