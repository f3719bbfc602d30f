"""Plugins: discovery through real entry points, provenance, and what the manager hands on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from support.plugin_site import BUILTIN, HEAD, Site, broken_import, folder, models, only

import medmllm_plugins
from medmllm_plugins.errors import PluginError
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import discover, get_manager, reset
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec

ROOT = Path(__file__).parents[2]  # the checkout, which an installed package is tested from
PACKAGE = Path(medmllm_plugins.__file__).parent


def test_builtin_plugin_is_found_once_and_first(site: Site) -> None:
    site.add("aaa", models("aaa_model"))
    manager = discover()
    assert [(info.name, info.distribution) for info in manager.plugins] == [
        ("builtin", "medmllm-plugins"),
        ("aaa", "aaa"),
    ]
    hooks = ("medmllm_models", "medmllm_tasks", "medmllm_probes", "medmllm_attributions")
    assert manager.plugins[0].hooks == hooks
    assert list(manager.models()) == [*BUILTIN, "aaa_model"]
    assert manager.failures == []


@pytest.mark.parametrize("name", ["medmllm-plugins", "medmllm_plugins", "MedMLLM.plugins"])
def test_builtin_plugin_of_an_installed_distribution_is_not_loaded_twice(site: Site, name: str) -> None:
    site.metadata(name, "[medmllm_plugins]\nbuiltin = medmllm_plugins.plugins.builtin\n", "9.9")
    manager = discover()
    assert [(info.name, info.version) for info in manager.plugins] == [("builtin", "9.9")]
    assert manager.failures == []


def test_an_entry_point_called_builtin_does_not_displace_ours(site: Site) -> None:
    site.add("aaa", models("other"), plugin="builtin")
    manager = discover()
    assert list(manager.models()) == BUILTIN
    assert only(manager, "builtin").distribution == "aaa"


def test_our_pyproject_declares_the_plugin_that_a_source_tree_falls_back_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["medmllm_plugins"] == {"builtin": "medmllm_plugins.plugins.builtin"}


def test_every_builtin_loader_is_there_and_imports_nothing_to_be_listed() -> None:
    for spec in discover().models().values():
        if spec.loader is None:  # loaded as transformers does, by its family
            continue
        module, _, function = spec.loader.partition(":")
        source = (PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        assert function in defined, spec.loader


def test_builtin_tasks_are_all_the_yaml_files_of_the_task_folder(site: Site) -> None:
    manager = discover()
    files = {path.relative_to(ROOT / "tasks") for path in (ROOT / "tasks").rglob("*.yaml")}
    entries = manager.tasks()
    assert {entry.path.relative_to(PACKAGE / "tasks") for entry in entries.values()} == {
        path for path in files if path.parts[0] != "datasets"
    }
    assert entries["med_cls"].kind == "group"
    assert {entry.plugin for entry in entries.values()} == {"builtin"}
    assert manager.dataset_folders() == [PACKAGE / "tasks" / "datasets"]
    assert {path.name for path in (PACKAGE / "tasks" / "datasets").glob("*.yaml")} == {
        path.name for path in files if path.parts[0] == "datasets"
    }


def test_an_older_copy_of_a_distribution_further_down_the_path_is_not_a_duplicate(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    site.add("twice", models("old"), version="1.0")
    monkeypatch.syspath_prepend(str(newer))
    Site(newer).metadata("Twice", "[medmllm_plugins]\ntwice = throwaway_twice\n", "2.0")
    manager = discover()
    assert manager.failures == []
    assert [(info.distribution, info.version) for info in manager.plugins[1:]] == [("Twice", "2.0")]


def test_unreadable_metadata_of_an_unrelated_distribution_is_no_concern(site: Site) -> None:
    site.metadata("stranger", "[console_scripts]\nthis line has no equals sign\n")
    (site.metadata("bytes", "") / "entry_points.txt").write_bytes(b"\xff\xfe medmllm_plugins")
    for name in ("nameless", "also_nameless"):
        (site.metadata(name, f"[medmllm_plugins]\n{name} = throwaway_{name}\n") / "METADATA").unlink()
        (site.path / f"throwaway_{name}.py").write_text(models(name))
        site.modules.append(f"throwaway_{name}")
    manager = discover()
    assert {"nameless", "also_nameless"} <= set(manager.models())
    assert {info.distribution for info in manager.plugins[1:]} == {"unknown"}
    assert [(failure.plugin, failure.stage) for failure in manager.failures] == [("bytes", "import")]


def test_two_entry_points_to_one_module_are_reported(site: Site) -> None:
    module = site.add("one", models("one"))
    site.metadata("two", f"[medmllm_plugins]\ntwo = {module}\n")
    manager = discover()
    assert "one" in manager.models()
    assert only(manager, "two").stage == "register"


def test_a_class_or_an_object_may_be_a_plugin(site: Site) -> None:
    source = HEAD + (
        "\nclass Plugin:\n    @hookimpl(specname='medmllm_models')\n    def other_name(self):\n"
        "        yield model('of_object')\nplugin = Plugin()\n"
    )
    site.add("object", source)
    (site.path / "object-1.2.dist-info" / "entry_points.txt").write_text(
        "[medmllm_plugins]\nobject = throwaway_object:plugin\n"
    )
    manager = discover()
    assert "of_object" in manager.models()
    assert manager.plugins[1].hooks == ("medmllm_models",)
    assert manager.failures == []


def test_a_hook_of_a_later_version_may_be_marked_optional(site: Site) -> None:
    site.add("later", models("later") + "\n@hookimpl(optionalhook=True)\ndef medmllm_future():\n    return []\n")
    manager = discover()
    assert manager.failures == []
    assert manager.plugins[1].hooks == ("medmllm_models",)


def test_probes_and_attributions(site: Site) -> None:
    source = HEAD + (
        "\n@hookimpl\ndef medmllm_probes():\n    yield ProbeSpec(name='p', target='a.b:c', summary='P.')\n"
        "\n@hookimpl\ndef medmllm_attributions():\n"
        "    return (AttributionSpec(name='q', target='a.b:c', summary='Q.'),)\n"
    )
    site.add("both", source)
    manager = discover()
    assert manager.probes()["p"] == ProbeSpec(name="p", target="a.b:c", summary="P.")
    assert manager.attributions()["q"] == AttributionSpec(name="q", target="a.b:c", summary="Q.")


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_is_off_when_empty_or_zero(site: Site, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", value)
    broken_import(site)
    assert len(discover().failures) == 1


def test_disabled_plugins_are_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("unwanted", "raise RuntimeError('imported')\n")
    site.add("wanted", models("wanted"))
    monkeypatch.setenv("MEDMLLM_DISABLE", " unwanted, builtin,")
    manager = discover()
    assert manager.failures == []
    assert list(manager.models()) == ["wanted"]
    assert manager.tasks() == {}
    assert {info.name: info.disabled for info in manager.plugins} == {
        "wanted": False,
        "builtin": True,
        "unwanted": True,
    }
    assert "throwaway_unwanted" not in sys.modules


def test_an_unknown_name_in_disable_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_DISABLE", "bultin")
    manager = discover()
    failure = only(manager, "bultin")
    assert (failure.stage, failure.distribution) == ("invalid", "")
    assert "MEDMLLM_DISABLE" in failure.message and "builtin" in failure.message
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    with pytest.raises(PluginError, match="bultin"):
        discover()


def test_a_plugin_registered_in_process_works_until_it_is_unregistered(site: Site, fresh: None) -> None:
    class Plugin:
        @hookimpl
        def medmllm_models(self) -> list[ModelSpec]:
            return [ModelSpec(name="throwaway", summary="A model.", wrapper="package.Wrapper")]

        @hookimpl
        def medmllm_modelz(self) -> list[ModelSpec]:
            return []

    manager = get_manager()
    assert list(manager.models()) == BUILTIN
    plugin = Plugin()
    manager.pluggy.register(plugin, name="throwaway")
    try:
        assert list(manager.models()) == [*BUILTIN, "throwaway"]
        assert manager.describe()["plugins"][-1]["models"] == ["throwaway"]
        assert only(manager, "throwaway").hook == "medmllm_modelz"
    finally:
        manager.pluggy.unregister(plugin)
    assert list(manager.models()) == BUILTIN
    assert manager.failures == []


def test_a_fault_registered_in_process_raises_under_strict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    module = ModuleType("in_process")
    exec(
        compile(models("x") + "\n@hookimpl\ndef medmllm_modles():\n    return []\n", "in_process", "exec"), vars(module)
    )
    manager.pluggy.register(module)
    try:
        with pytest.raises(PluginError, match="medmllm_modles"):
            _ = manager.failures
    finally:
        manager.pluggy.unregister(module)
    assert manager.failures == []


def test_get_manager_is_one_until_reset(fresh: None) -> None:
    first = get_manager()
    assert get_manager() is first
    reset()
    assert get_manager() is not first


def test_hooks_are_called_once(site: Site) -> None:
    site.add("counting", HEAD + "\ncalls = []\n@hookimpl\ndef medmllm_models():\n    calls.append(1)\n    return []\n")
    manager = discover()
    for _ in range(3):
        manager.models()
        _ = manager.failures
    assert sys.modules["throwaway_counting"].calls == [1]


def test_describe_is_json_and_tells_what_each_plugin_gives(site: Site) -> None:
    site.add("giver", models("given") + folder(site.tasks("given", a="task: given_task\n")))
    broken_import(site)
    described = json.loads(json.dumps(discover().describe()))
    builtin, giver = described["plugins"]
    assert builtin["name"] == "builtin" and builtin["models"] == BUILTIN and "med_cls" in builtin["tasks"]
    assert giver == {
        "name": "giver",
        "distribution": "giver",
        "version": "1.2",
        "hooks": ["medmllm_models", "medmllm_tasks"],
        "disabled": False,
        "models": ["given"],
        "datasets": [],
        "tasks": ["given_task"],
        "probes": [],
        "attributions": [],
        "interventions": [],
    }
    assert [failure["stage"] for failure in described["failures"]] == ["import"]


def test_discovery_loads_nothing_heavy(site: Site) -> None:
    code = (
        "import sys; from medmllm_plugins.plugins.manager import get_manager; get_manager().models();"
        "heavy = {'torch', 'lmms_eval', 'numpy', 'yaml', 'transformers', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy; assert get_manager().tasks(); assert 'yaml' in sys.modules; print('light')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "light", run.stderr
