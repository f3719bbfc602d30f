"""Each kind of fault of a plugin costs only what is faulty, and names the plugin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.plugin_site import BUILTIN, HEAD, Site, broken_import, folder, models, only

from medmllm_plugins.errors import PluginError
from medmllm_plugins.plugins.manager import discover


# Each fault: what is installed, the stage and hook of the failure, what its message must say, and which of the two
# models `kept` of the faulty plugin goes on working.
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
    invalid_spec: ("hook", "medmllm_models", "got 'Not A Name'", False),
    returns_none: ("invalid", "medmllm_tasks", "iterable of TaskFolder, got None", True),
    returns_string: ("invalid", "medmllm_tasks", "iterable of TaskFolder, got 'tasks'", True),
    returns_wrong_item: ("invalid", "medmllm_models", "item 1 of 'medmllm_models' to be ModelSpec", True),
    duplicate_model: ("duplicate", "medmllm_models", "model name 'medm_vl' is taken by medmllm-plugins", True),
    duplicate_task: ("duplicate", "medmllm_tasks", "task name 'med_cls' is taken by medmllm-plugins", True),
    lost_folder: ("invalid", "medmllm_tasks", "no/such/folder", True),
    lost_package: ("invalid", "medmllm_tasks", "'no_such_package'", True),
    malformed_yaml: ("task file", "medmllm_tasks", "b.yaml, line 3", True),
}
IDS = [fault.__name__ for fault in FAULTS]


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_costs_only_what_is_faulty(site: Site, fault: Callable[[Site], None]) -> None:
    stage, hook, says, kept = FAULTS[fault]
    site.add("aaa-good", models("good_before"))
    fault(site)
    site.add("zzz-good", models("good_after") + folder(site.tasks("good", g="task: good_task\n")))
    manager = discover()
    expected = {*BUILTIN, "good_before", "good_after"} | ({"kept"} if kept else set())
    assert set(manager.models()) == expected
    assert {"med_cls", "good_task"} <= set(manager.tasks())
    failure = only(manager, "faulty")
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
    manager = discover() if FAULTS[fault][0] not in ("import", "register") else None
    with pytest.raises(PluginError) as caught:
        _ = manager.failures if manager else discover()
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
    manager = discover()
    assert list(manager.models()) == [*BUILTIN, "c_model", "e_model", "shared", "g_model", "j_model"]
    assert {"bad_but_one", "i_task", "j_task", "med_cls"} <= set(manager.tasks())
    assert manager.tasks()["med_cls"].plugin == "builtin"
    assert sorted((failure.distribution, failure.version, failure.stage) for failure in manager.failures) == [
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
    duplicate = only(manager, "g_model").message
    assert "e-first 1.2" in duplicate and "g-model 1.2" in duplicate
    assert [plugin["distribution"] for plugin in manager.describe()["plugins"] if "shared" in plugin["models"]] == [
        "e-first"
    ]
    assert [info.name for info in manager.plugins if info.name == "taken"] == ["taken"]
    taken = [failure for failure in manager.failures if failure.plugin == "taken"]
    assert "e-first 1.2" in taken[0].message and "f-second 7.1" in taken[0].message
