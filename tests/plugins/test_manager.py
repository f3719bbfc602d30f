"""Plugins: discovery through real entry points, isolation of each kind of fault, provenance, and the example."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import medmllm_plugins
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins import builtin, task_files
from medmllm_plugins.plugins import manager as manager_module
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import Failure, Manager, discover, get_manager, reset
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder

ROOT = Path(__file__).parents[2]  # the checkout, which an installed package is tested from
PACKAGE = Path(medmllm_plugins.__file__).parent
EXAMPLE = ROOT / "examples" / "plugin"

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


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("MEDMLLM_STRICT", raising=False)
    monkeypatch.delenv("MEDMLLM_DISABLE", raising=False)
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    made = Site(path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh() -> Iterator[None]:
    reset()
    yield
    reset()


def only(found: Manager, plugin: str) -> Failure:
    """The one failure of a plugin."""
    failures = [failure for failure in found.failures if failure.plugin == plugin]
    assert len(failures) == 1, [str(failure) for failure in failures]
    return failures[0]


# Each fault: what is installed, the stage and hook of the failure, what its message must say, and which of the two
# models `kept` of the faulty plugin goes on working.
def broken_import(site: Site) -> None:
    site.add("faulty", "import a_module_that_is_not_there\n" + models("kept"))


def syntax_error(site: Site) -> None:
    site.add("faulty", "x = 1\ndef broken(:\n    pass\n")


def exits_at_import(site: Site) -> None:
    site.add("faulty", "import sys\nsys.exit(3)\n")


def unprintable_error(site: Site) -> None:
    site.add("faulty", "class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E()\n")


def missing_module(site: Site) -> None:
    site.metadata("faulty", "[medmllm_plugins]\nfaulty = no_such_module_of_faulty\n")


def broken_entry_points(site: Site) -> None:
    site.metadata("faulty", "[medmllm_plugins]\nfaulty\n")


def nothing_behind(site: Site) -> None:
    site.add("faulty", "nothing = None\n")
    info = site.path / "faulty-1.2.dist-info" / "entry_points.txt"
    info.write_text("[medmllm_plugins]\nfaulty = throwaway_faulty:nothing\n")


def misspelled_hook(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_modles():\n    return []\n")


def unmarked_hook(site: Site) -> None:
    site.add("faulty", models("kept") + "\ndef medmllm_probes():\n    return []\n")


def hook_with_argument(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_probes(config):\n    return []\n")


def wrapping_hook(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl(wrapper=True)\ndef medmllm_probes():\n    return (yield)\n")


def raising_hook(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_tasks():\n    raise KeyError('lost')\n")


def exiting_hook(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_tasks():\n    raise SystemExit(4)\n")


def raising_generator(site: Site) -> None:
    source = "\n@hookimpl\ndef medmllm_models():\n    yield model('half')\n    raise RuntimeError('midway')\n"
    site.add("faulty", HEAD + source)


def invalid_spec(site: Site) -> None:
    source = "\n@hookimpl\ndef medmllm_models():\n    return [model('half'), model('Not A Name')]\n"
    site.add("faulty", HEAD + source)


def returns_none(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_tasks():\n    pass\n")


def returns_string(site: Site) -> None:
    site.add("faulty", models("kept") + "\n@hookimpl\ndef medmllm_tasks():\n    return 'tasks'\n")


def returns_wrong_item(site: Site) -> None:
    site.add("faulty", HEAD + "\n@hookimpl\ndef medmllm_models():\n    return [model('kept'), 'medm_vl']\n")


def duplicate_model(site: Site) -> None:
    site.add("faulty", models("kept", "medm_vl"))


def duplicate_task(site: Site) -> None:
    path = site.tasks("dup", a="task: med_cls\n")
    site.add("faulty", models("kept") + folder(path))


def lost_folder(site: Site) -> None:
    site.add("faulty", models("kept") + folder("medmllm_plugins:no/such/folder"))


def lost_package(site: Site) -> None:
    site.add("faulty", models("kept") + folder("no_such_package:tasks"))


def malformed_yaml(site: Site) -> None:
    path = site.tasks("bad", a="task: fine_one\n", b="task: x\nmetadata: {a: [1\nmore: 2\n")
    site.add("faulty", models("kept") + folder(path))


FAULTS: dict[Callable[[Site], None], tuple[str, str | None, str, bool]] = {
    broken_import: ("import", None, "ModuleNotFoundError: No module named 'a_module_that_is_not_there'", False),
    syntax_error: ("import", None, "line 2", False),
    exits_at_import: ("import", None, "SystemExit: 3", False),
    unprintable_error: ("import", None, "throwaway_faulty.E", False),
    missing_module: ("import", None, "no_such_module_of_faulty", False),
    broken_entry_points: ("import", None, "entry_points.txt", False),
    nothing_behind: ("register", None, "got None", False),
    misspelled_hook: ("register", "medmllm_modles", "did you mean 'medmllm_models'?", True),
    unmarked_hook: ("register", "medmllm_probes", "@hookimpl", True),
    hook_with_argument: ("register", "medmllm_probes", "requires config", True),
    wrapping_hook: ("register", "medmllm_probes", "wrapper", True),
    raising_hook: ("hook", "medmllm_tasks", "KeyError: 'lost'", True),
    exiting_hook: ("hook", "medmllm_tasks", "SystemExit: 4", True),
    raising_generator: ("hook", "medmllm_models", "RuntimeError: midway", False),
    invalid_spec: ("hook", "medmllm_models", "but got 'Not A Name'", False),
    returns_none: ("invalid", "medmllm_tasks", "iterable of TaskFolder, but got None", True),
    returns_string: ("invalid", "medmllm_tasks", "iterable of TaskFolder, but got 'tasks'", True),
    returns_wrong_item: ("invalid", "medmllm_models", "item 1 of 'medmllm_models' to be ModelSpec", True),
    duplicate_model: ("duplicate", "medmllm_models", "model name 'medm_vl' is taken by medmllm-plugins", True),
    duplicate_task: ("duplicate", "medmllm_tasks", "task name 'med_cls' is taken by medmllm-plugins", True),
    lost_folder: ("invalid", "medmllm_tasks", "no/such/folder", True),
    lost_package: ("invalid", "medmllm_tasks", "'no_such_package'", True),
    malformed_yaml: ("task file", "medmllm_tasks", "b.yaml, line 3", True),
}
IDS = [fault.__name__ for fault in FAULTS]


def test_builtin_plugin_is_found_once_and_first(site: Site) -> None:
    site.add("aaa", models("aaa_model"))
    found = discover()
    assert [(info.name, info.distribution) for info in found.plugins] == [
        ("builtin", "medmllm-plugins"),
        ("aaa", "aaa"),
    ]
    hooks = ("medmllm_models", "medmllm_tasks", "medmllm_probes", "medmllm_attributions")
    assert found.plugins[0].hooks == hooks
    assert list(found.models()) == [*BUILTIN, "aaa_model"]
    assert found.failures == []


@pytest.mark.parametrize("name", ["medmllm-plugins", "medmllm_plugins", "MedMLLM.plugins"])
def test_builtin_plugin_of_an_installed_distribution_is_not_loaded_twice(site: Site, name: str) -> None:
    site.metadata(name, "[medmllm_plugins]\nbuiltin = medmllm_plugins.plugins.builtin\n", "9.9")
    found = discover()
    assert [(info.name, info.version) for info in found.plugins] == [("builtin", "9.9")]
    assert found.failures == []


def test_an_entry_point_called_builtin_does_not_displace_ours(site: Site) -> None:
    site.add("aaa", models("other"), plugin="builtin")
    found = discover()
    assert list(found.models()) == BUILTIN
    assert only(found, "builtin").distribution == "aaa"


def test_our_pyproject_declares_the_plugin_that_a_source_tree_falls_back_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["medmllm_plugins"] == {"builtin": "medmllm_plugins.plugins.builtin"}


def test_every_builtin_loader_is_there_and_imports_nothing_to_be_listed() -> None:
    for spec in discover().models().values():
        module, _, function = str(spec.loader).partition(":")
        source = (PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        assert function in defined, spec.loader


def test_builtin_tasks_are_all_the_yaml_files_of_the_task_folder(site: Site) -> None:
    found = discover()
    files = {path.relative_to(ROOT / "tasks") for path in (ROOT / "tasks").rglob("*.yaml")}
    entries = found.tasks()
    assert {entry.path.relative_to(PACKAGE / "tasks") for entry in entries.values()} == {
        path for path in files if path.parts[0] != "datasets"
    }
    assert entries["med_cls"].kind == "group"
    assert {entry.plugin for entry in entries.values()} == {"builtin"}
    assert found.dataset_folders() == [PACKAGE / "tasks" / "datasets"]
    assert {path.name for path in (PACKAGE / "tasks" / "datasets").glob("*.yaml")} == {
        path.name for path in files if path.parts[0] == "datasets"
    }


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_costs_only_what_is_faulty(site: Site, fault: Callable[[Site], None]) -> None:
    stage, hook, says, kept = FAULTS[fault]
    site.add("aaa-good", models("good_before"))
    fault(site)
    site.add("zzz-good", models("good_after") + folder(site.tasks("good", g="task: good_task\n")))
    found = discover()
    expected = {*BUILTIN, "good_before", "good_after"} | ({"kept"} if kept else set())
    assert set(found.models()) == expected
    assert {"med_cls", "good_task"} <= set(found.tasks())
    failure = only(found, "faulty")
    assert (failure.distribution, failure.version) == ("faulty", "1.2")
    assert (failure.stage, failure.hook) == (stage, hook)
    assert says in failure.message
    assert "\n" not in failure.message
    assert "faulty 1.2" in str(failure) and stage in str(failure)


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_strict_raises_for_each_fault(
    site: Site, fault: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    assert discover().failures == []  # without the fault there is nothing to raise
    fault(site)
    found = discover() if FAULTS[fault][0] not in ("import", "register") else None
    with pytest.raises(PluginError) as caught:
        _ = found.failures if found else discover()
    assert "faulty 1.2" in str(caught.value)
    assert FAULTS[fault][2] in str(caught.value)


def test_all_faults_at_once(site: Site) -> None:
    site.add("b-import", "raise RuntimeError('no')\n")
    site.add("c-spelling", models("c_model") + "\n@hookimpl\ndef medmllm_task():\n    return []\n")
    site.add("d-raising", HEAD + "\n@hookimpl\ndef medmllm_models():\n    raise OSError('no')\n")
    site.add("e-first", models("e_model", "shared"), plugin="taken")
    site.add("f-second", models("f_model"), plugin="taken", version="7.1")
    site.add("g-model", models("g_model", "shared"))
    bad = site.tasks("bad", a="task: [\n", b=b"\xff\xfe\x00", c="nothing: here\n", d="task: bad_but_one\n")
    site.add("h-yaml", HEAD + folder(bad))
    site.add("i-task", HEAD + folder(site.tasks("dup", a="task: med_cls\n", b="task: i_task\n")))
    site.add("j-good", models("j_model") + folder(site.tasks("good", a="task: j_task\n")))
    found = discover()
    assert list(found.models()) == [*BUILTIN, "c_model", "e_model", "shared", "g_model", "j_model"]
    assert {"bad_but_one", "i_task", "j_task", "med_cls"} <= set(found.tasks())
    assert found.tasks()["med_cls"].plugin == "builtin"
    assert sorted((failure.distribution, failure.version, failure.stage) for failure in found.failures) == [
        ("b-import", "1.2", "import"),
        ("c-spelling", "1.2", "register"),
        ("d-raising", "1.2", "hook"),
        ("f-second", "7.1", "duplicate"),
        ("g-model", "1.2", "duplicate"),
        ("h-yaml", "1.2", "task file"),
        ("h-yaml", "1.2", "task file"),
        ("h-yaml", "1.2", "task file"),
        ("i-task", "1.2", "duplicate"),
    ]
    duplicate = only(found, "g_model").message
    assert "e-first 1.2" in duplicate and "g-model 1.2" in duplicate
    assert found.model_provenance()["shared"].distribution == "e-first"
    assert [info.name for info in found.plugins if info.name == "taken"] == ["taken"]
    taken = [failure for failure in found.failures if failure.plugin == "taken"]
    assert "e-first 1.2" in taken[0].message and "f-second 7.1" in taken[0].message


def test_an_older_copy_of_a_distribution_further_down_the_path_is_not_a_duplicate(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    site.add("twice", models("old"), version="1.0")
    monkeypatch.syspath_prepend(str(newer))
    Site(newer).metadata("Twice", "[medmllm_plugins]\ntwice = throwaway_twice\n", "2.0")
    found = discover()
    assert found.failures == []
    assert [(info.distribution, info.version) for info in found.plugins[1:]] == [("Twice", "2.0")]


def test_unreadable_metadata_of_an_unrelated_distribution_is_no_concern(site: Site) -> None:
    site.metadata("stranger", "[console_scripts]\nthis line has no equals sign\n")
    (site.metadata("bytes", "") / "entry_points.txt").write_bytes(b"\xff\xfe medmllm_plugins")
    for name in ("nameless", "also_nameless"):
        (site.metadata(name, f"[medmllm_plugins]\n{name} = throwaway_{name}\n") / "METADATA").unlink()
        (site.path / f"throwaway_{name}.py").write_text(models(name))
        site.modules.append(f"throwaway_{name}")
    found = discover()
    assert {"nameless", "also_nameless"} <= set(found.models())
    assert {info.distribution for info in found.plugins[1:]} == {"unknown"}
    assert [(failure.plugin, failure.stage) for failure in found.failures] == [("bytes", "import")]


def test_two_entry_points_to_one_module_are_reported(site: Site) -> None:
    module = site.add("one", models("one"))
    site.metadata("two", f"[medmllm_plugins]\ntwo = {module}\n")
    found = discover()
    assert "one" in found.models()
    assert only(found, "two").stage == "register"


def test_a_class_or_an_object_may_be_a_plugin(site: Site) -> None:
    source = HEAD + (
        "\nclass Plugin:\n    @hookimpl(specname='medmllm_models')\n    def other_name(self):\n"
        "        yield model('of_object')\nplugin = Plugin()\n"
    )
    site.add("object", source)
    (site.path / "object-1.2.dist-info" / "entry_points.txt").write_text(
        "[medmllm_plugins]\nobject = throwaway_object:plugin\n"
    )
    found = discover()
    assert "of_object" in found.models()
    assert found.plugins[1].hooks == ("medmllm_models",)
    assert found.failures == []


def test_a_hook_of_a_later_version_may_be_marked_optional(site: Site) -> None:
    site.add("later", models("later") + "\n@hookimpl(optionalhook=True)\ndef medmllm_future():\n    return []\n")
    found = discover()
    assert found.failures == []
    assert found.plugins[1].hooks == ("medmllm_models",)


def test_probes_and_attributions(site: Site) -> None:
    source = HEAD + (
        "\n@hookimpl\ndef medmllm_probes():\n    yield ProbeSpec(name='p', target='a.b:c', summary='P.')\n"
        "\n@hookimpl\ndef medmllm_attributions():\n"
        "    return (AttributionSpec(name='q', target='a.b:c', summary='Q.'),)\n"
    )
    site.add("both", source)
    found = discover()
    assert found.probes()["p"] == ProbeSpec(name="p", target="a.b:c", summary="P.")
    assert found.attributions()["q"] == AttributionSpec(name="q", target="a.b:c", summary="Q.")


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_is_off_when_empty_or_zero(site: Site, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", value)
    broken_import(site)
    assert len(discover().failures) == 1


def test_disabled_plugins_are_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("unwanted", "raise RuntimeError('imported')\n")
    site.add("wanted", models("wanted"))
    monkeypatch.setenv("MEDMLLM_DISABLE", " unwanted, builtin,")
    found = discover()
    assert found.failures == []
    assert list(found.models()) == ["wanted"]
    assert found.tasks() == {}
    assert {info.name: info.disabled for info in found.plugins} == {"wanted": False, "builtin": True, "unwanted": True}
    assert "throwaway_unwanted" not in sys.modules


def test_an_unknown_name_in_disable_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_DISABLE", "bultin")
    found = discover()
    failure = only(found, "bultin")
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

    found = get_manager()
    assert list(found.models()) == BUILTIN
    plugin = Plugin()
    found.pluggy.register(plugin, name="throwaway")
    try:
        assert list(found.models()) == [*BUILTIN, "throwaway"]
        assert found.model_provenance()["throwaway"].name == "throwaway"
        assert only(found, "throwaway").hook == "medmllm_modelz"
    finally:
        found.pluggy.unregister(plugin)
    assert list(found.models()) == BUILTIN
    assert found.failures == []


def test_a_fault_registered_in_process_raises_under_strict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    found = discover()
    module = ModuleType("in_process")
    exec(
        compile(models("x") + "\n@hookimpl\ndef medmllm_modles():\n    return []\n", "in_process", "exec"), vars(module)
    )
    found.pluggy.register(module)
    try:
        with pytest.raises(PluginError, match="medmllm_modles"):
            _ = found.failures
    finally:
        found.pluggy.unregister(module)
    assert found.failures == []


def test_get_manager_is_one_until_reset(fresh: None) -> None:
    first = get_manager()
    assert get_manager() is first
    reset()
    assert get_manager() is not first


def test_hooks_are_called_once(site: Site) -> None:
    site.add("counting", HEAD + "\ncalls = []\n@hookimpl\ndef medmllm_models():\n    calls.append(1)\n    return []\n")
    found = discover()
    for _ in range(3):
        found.models()
        _ = found.failures
    assert sys.modules["throwaway_counting"].calls == [1]


def test_task_files(site: Site) -> None:
    path = site.tasks(
        "kinds",
        plain="task: one\nclass: !function some.where.Task\n",
        of_group="group: legacy\ntask: two\n",
        group="group: three\ntask: [one, two, {task: four}]\n",
        _base="not: a task\n",
        bom=b"\xef\xbb\xbftask: with_bom\n",
        tagged="task: five\nother: !python/object:os.system {a: 1}\nmore: !!python/name:os.system ''\n",
    )
    root = Path(path)
    for sub, content in {
        "deep/er/six.yaml": "task: six\n",
        "__pycache__/cached.yaml": "task: cached\n",
        ".hidden/hidden.yaml": "task: hidden\n",
        "deep/datasets/data.yaml": "name: data\n",
        "datasets/data.yaml": "name: data\n",
        "notes.yml": "task: seven\n",
    }.items():
        (root / sub).parent.mkdir(parents=True, exist_ok=True)
        (root / sub).write_text(content)
    site.add("kinds", HEAD + folder(path) + "\n@hookimpl(specname='medmllm_tasks')\ndef again():\n    return []\n")
    site.add("overlap", HEAD + folder(str(root / "deep")))
    found = discover()
    ours = {name: entry.kind for name, entry in found.tasks().items() if entry.plugin != "builtin"}
    assert found.failures == []
    assert ours == {"one": "task", "two": "task", "three": "group", "with_bom": "task", "five": "task", "six": "task"}
    assert found.tasks()["six"].path == root / "deep" / "er" / "six.yaml"
    assert found.dataset_folders()[1:] == [root / "datasets", root / "deep" / "datasets"]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", 1, "`task: NAME`"),
        (b"- a\n- b\n", 1, "`task: NAME`"),
        (b"a: 1\nb: 2\n", 1, "it has none"),
        (b"a: 1\ntask: 5\n", 2, "got task: 5"),
        (b"a: 1\ntask: two words\n", 2, "'two words'"),
        (b"a: 1\n\ntask: [x]\n", 3, "it has none"),
        (b"a: 1\ntask: [x]\ngroup: 7\n", 3, "got group: 7"),
        (b"task: x\nb: [1, 2\nc: 3\n", 3, "expected YAML"),
        (b"task: x\nb: *nowhere\n", 2, "undefined alias"),
        (b"task: x\n---\ntask: y\n", 2, "another document"),
        (b"task: x\nb: {[1]: 2}\n", 2, "a key that is no text"),
        (b"task: x\n\nday: 2024-13-01\n", 3, "month must be in 1..12"),
        (b"task: x\nname: caf\xe9\n", 2, "expected UTF-8, got byte 0xe9"),
        (b"task: x\nname: \x07\n", 2, "special characters"),
        (b"task: x\n\xff\xfe\x00\x01", 2, "expected UTF-8"),
        (b"task: x\ndeep: " + b"[" * 5000, 2, "nesting deeper than"),
    ],
)
def test_faulty_task_file_is_named_with_its_line(site: Site, content: bytes, line: int, says: str) -> None:
    site.add("files", HEAD + folder(site.tasks("files", bad=content, good="task: good\n")))
    found = discover()
    assert "good" in found.tasks()
    message = only(found, "files").message
    assert f"bad.yaml, line {line}:" in message
    assert says in message


@settings(max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text(alphabet="task: group[]{}!&*?|>-#'\"\n\t %@`,.0123456789", max_size=120).map(str.encode),
    )
)
def test_any_file_is_a_task_or_a_failure_that_names_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        name, kind = task_files.read_task(path)
    except PluginError as error:
        assert str(error).startswith(f"{path}, line ")
    else:
        assert name and kind in ("task", "group")


@settings(max_examples=50)
@given(
    st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True),
    st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(), st.booleans())),
)
def test_whatever_else_a_task_file_holds_its_name_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, rest: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "named.yaml"
    path.write_text(yaml.safe_dump({**rest, "task": name}, allow_unicode=True), encoding="utf-8")
    assert task_files.read_task(path) == (name, "task")


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Upper"}, "`name`"),
        ({"name": "_a"}, "`name`"),
        ({"name": ""}, "`name`"),
        ({"name": "a\n"}, "`name`"),
        ({"name": 3}, "`name`"),
        ({"summary": ""}, "`summary`"),
        ({"summary": "two\nlines"}, "`summary`"),
        ({"loader": None}, "exactly one"),
        ({"wrapper": "a.B"}, "exactly one"),
        ({"loader": "a.b.c"}, "`loader`"),
        ({"loader": "a.b:"}, "`loader`"),
        ({"loader": ":c"}, "`loader`"),
        ({"loader": "a..b:c"}, "`loader`"),
        ({"loader": "a.b:c.d"}, "`loader`"),
        ({"loader": "a.class:c"}, "`loader`"),
        ({"loader": print}, "`loader`"),
        ({"loader": None, "wrapper": "Class"}, "`wrapper`"),
        ({"loader": None, "wrapper": "a:Class"}, "`wrapper`"),
        ({"sizes": ["7b"]}, "`sizes`"),
        ({"sizes": {"7b": 7}}, "`sizes`"),
        ({"licence": None}, "`licence`"),
        ({"citation": 5}, "`citation`"),
    ],
)
def test_model_spec_refuses(changes: dict[str, Any], says: str) -> None:
    sound: dict[str, Any] = {"name": "a", "summary": "A model.", "loader": "a.b:c"}
    ModelSpec(**sound)
    with pytest.raises(OptionError, match=says) as caught:
        ModelSpec(**{**sound, **changes})
    assert str(caught.value).startswith("Expected")


def test_model_spec_is_frozen_and_hashable() -> None:
    sizes = {"7b": "owner/name"}
    spec = ModelSpec(name="a", summary="A model.", loader="a.b:c", sizes=sizes)
    sizes["8b"] = "other/name"
    assert dict(spec.sizes) == {"7b": "owner/name"}
    assert hash(spec) == hash(ModelSpec(name="a", summary="A model.", loader="a.b:c", sizes={"7b": "owner/name"}))
    with pytest.raises(FrozenInstanceError):
        spec.name = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        spec.sizes["8b"] = "other/name"  # type: ignore[index]


@pytest.mark.parametrize("path", ["", "tasks", "pkg:", ":tasks", "pkg:/tasks", "pkg:../tasks", "a b:tasks", 5, None])
def test_task_folder_refuses(path: Any) -> None:
    with pytest.raises(OptionError, match="`path`"):
        TaskFolder(path=path)


@pytest.mark.parametrize("kind", [ProbeSpec, AttributionSpec])
@pytest.mark.parametrize("changes", [{"name": "A"}, {"target": "a.b"}, {"summary": " "}])
def test_other_specs_refuse(kind: type[Any], changes: dict[str, str]) -> None:
    sound = {"name": "a", "target": "a.b:c", "summary": "S."}
    kind(**sound)
    with pytest.raises(OptionError, match=next(iter(changes))):
        kind(**{**sound, **changes})


def test_task_folder_of_a_package_is_found_without_importing_it(site: Site) -> None:
    package = site.path / "throwaway_heavy"
    (package / "some" / "tasks").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    assert TaskFolder(path="throwaway_heavy:some/tasks").resolve() == package / "some" / "tasks"
    assert "throwaway_heavy" not in sys.modules


def test_example_plugin_is_what_it_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    entry_points = project["project"]["entry-points"]["medmllm_plugins"]
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    site.metadata(project["project"]["name"], f"[medmllm_plugins]\n{lines}", project["project"]["version"])
    monkeypatch.syspath_prepend(str(EXAMPLE))
    site.modules.append("medmllm_example")
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    found = discover()
    assert found.failures == []
    assert found.model_provenance()["example_vl"].distribution == "medmllm-example"
    entry = found.tasks()["med_cls_example"]
    assert entry.plugin == "example"
    assert found.dataset_folders()[1] == EXAMPLE / "medmllm_example" / "tasks" / "datasets"
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


def test_example_loader_translates_its_size_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Options:
        pretrained: str
        device: str = "cpu"

    seen: list[Options] = []
    rooms = ModuleType("medmllm_plugins.models.formats")
    rooms.medm_vl = SimpleNamespace(load=seen.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medmllm_plugins.models.formats", rooms)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    site.modules.append("medmllm_example")
    import medmllm_example  # type: ignore[import-not-found]

    for asked in ("tiny", "3b", "some/folder"):
        medmllm_example.load(Options(asked))
    assert [options.pretrained for options in seen] == ["demo", "shiym2000/MedM-VL-2D-3B-en", "some/folder"]


def test_documentation_shows_the_example_as_it_is() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name in (
        "pyproject.toml",
        "medmllm_example/__init__.py",
        "medmllm_example/tasks/med_cls_example.yaml",
        "medmllm_example/tasks/datasets/example.yaml",
    ):
        assert (EXAMPLE / name).read_text(encoding="utf-8").strip() in text, name
    for hook in manager_module.HOOKS:
        assert f"`{hook}" in text
