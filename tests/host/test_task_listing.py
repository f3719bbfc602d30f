"""How the host gets to know our tasks, and that no fault of a plugin costs the host anything."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lmms_eval
import lmms_eval.models
import lmms_eval.tasks
import pytest
from host.registration import (
    FILES,
    OURS,
    PACKAGE,
    PREFIXES,
    Broken,
    Plugin,
    failing,
    plain_index,
)
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

from medmllm_plugins.errors import PluginError
from medmllm_plugins.host import task_index, task_manager_hook
from medmllm_plugins.host.task_loading import task_loading
from medmllm_plugins.plugins.manager import get_manager, reset

pytestmark = pytest.mark.usefixtures("own_tables")


def test_the_hosts_index_holds_our_tasks_beside_its_own(task_manager: TaskManager) -> None:
    assert set(task_manager.all_tasks) >= OURS
    assert "med_cls" in task_manager.all_groups
    assert set(task_manager.all_subtasks) >= OURS - FILES
    assert len(task_manager.all_tasks) > 100 and "mme" in task_manager.all_tasks
    assert task_manager.match_tasks(["med_cls_d*o"]) == ["med_cls_demo"]


def test_the_hosts_listing_shows_our_tasks() -> None:
    listed = plain_index().list_all_tasks()
    assert all(f"|{name}" in listed for name in OURS)


def test_all_shipped_task_files_load_with_the_hosts_own_loader() -> None:
    paths = sorted(path for path in (PACKAGE / "tasks").rglob("*.yaml") if path.parent.name != "datasets")
    groups = set()
    for path in paths:
        simple, full = (load_yaml_config(str(path), mode=mode) for mode in ("simple", "full"))
        assert set(simple) == set(full)
        assert full["metadata"]["version"]
        assert set(full["task"]) < OURS
        groups.add(full["group"])
    assert groups == FILES


def test_declared_tasks_load_with_the_hosts_own_loader() -> None:
    """Its listing reads the file that stands behind each name."""
    from medmllm_plugins.host.attribution_tasks import AttributingTask
    from medmllm_plugins.host.patch_tasks import PatchingTask
    from medmllm_plugins.host.probe_tasks import ProbingTask
    from medmllm_plugins.host.tasks import ClassificationTask

    classes = {
        "med_attr": AttributingTask,
        "med_patch": PatchingTask,
        "med_probe": ProbingTask,
        "med_cls": ClassificationTask,
    }
    index = plain_index()
    for name in OURS - FILES:
        assert load_yaml_config(index.task_index[name]["yaml_path"], mode="simple")["classes"]
        config = index._get_config(name)
        assert config["class"] is classes["_".join(name.split("_")[:2])]
        assert config["task"] == name
        assert config["output_type"] == "generate_until"  # all that the host's chat models answer


def test_the_host_finds_them_by_itself_too() -> None:
    """What the host's own walk over our folder finds, and what we add, agree; and neither hides the other."""
    theirs = plain_index()
    for name in OURS:
        assert Path(theirs.task_index[name]["yaml_path"]).is_file()
    walked: dict[str, Any] = {}
    for folder in PREFIXES:
        walked |= theirs._get_task_and_group(str(PACKAGE / "tasks" / folder))
    assert set(walked) == FILES
    for name, entry in walked.items():
        assert Path(entry["yaml_path"]).samefile(theirs.task_index[name]["yaml_path"])
        assert (entry["type"] == "group") == (theirs.task_index[name]["type"] == "group")
        assert entry.get("task") == theirs.task_index[name].get("task")


def test_no_metrics_name_holds_another() -> None:
    """The host finds the metrics of a group by substring."""
    from medmllm_plugins.host.attribution_tasks import Attributing
    from medmllm_plugins.host.probe_tasks import Probing
    from medmllm_plugins.results.scoring import LOWER_IS_BETTER, METRICS

    printed = [*METRICS, *LOWER_IS_BETTER, "kappa", *Probing.PRINTED, *Attributing.PRINTED]
    assert not [(a, b) for a in printed for b in printed if a != b and a in b]


def test_a_name_that_is_taken_stays_as_it_was(
    register: Callable[..., None], files: Callable[..., Path], warned: list[str]
) -> None:
    """Built-in before ``--include_path`` before plugin."""
    taken = "task: med_cls_demo_open\ndataset_path: json\n"
    included = files("included", a=taken, b="task: shared\ndataset_path: json\n")
    register(Plugin(tasks=files("plugin", b="task: shared\n", c="task: free\n")))
    index = plain_index(include_path=str(included)).task_index
    assert Path(index["med_cls_demo_open"]["yaml_path"]).parent == included
    assert Path(index["shared"]["yaml_path"]).parent == included
    assert index["free"]["type"] == "task"
    assert len(warned) == 2
    for name, origin in (("med_cls_demo_open", "data set demo"), ("shared", "throwaway")):
        assert any(f"'{name}' of {origin} is hidden" in message for message in warned)


def test_a_task_of_the_host_is_not_replaced(
    register: Callable[..., None], files: Callable[..., Path], warned: list[str], task_manager: TaskManager
) -> None:
    register(Plugin(tasks=files("plugin", a="task: mme\n")))
    index = {name: dict(entry) for name, entry in task_manager.task_index.items() if name not in OURS}
    before = dict(index["mme"])
    task_index.add_tasks(index)
    assert index["mme"] == before and set(index) >= OURS
    assert len(warned) == 1 and "'mme'" in warned[0]


def test_naming_our_own_folder_is_no_conflict(warned: list[str]) -> None:
    index = plain_index(include_path=str(PACKAGE / "tasks" / "med_cls")).task_index
    assert set(index) == OURS
    assert warned == []


def test_a_broken_task_file_costs_only_itself(
    register: Callable[..., None], files: Callable[..., Path], warned: list[str]
) -> None:
    """In a folder that the host walks itself, one such file ends every command."""
    folder = files("plugin", bad="task: bad\nmetadata: {a: [1\n", good="task: good\n", odd="- a list\n", none="a: 1\n")
    register(Plugin(tasks=folder))
    assert set(plain_index().all_tasks) == OURS | {"good"}
    assert len(warned) == 3
    for name in ("bad", "odd", "none"):
        assert any(f"{name}.yaml, line" in message and "throwaway" in message for message in warned)


def test_a_broken_plugin_costs_only_its_own_tasks(
    register: Callable[..., None], files: Callable[..., Path], warned: list[str]
) -> None:
    register(Plugin(tasks=Path(str(files("gone")) + "/not_there")), "lost")
    register(Broken(tasks=files("kept", a="task: kept\n")), "broken")
    assert set(plain_index().all_tasks) == OURS | {"kept"}
    assert sorted("lost" in message for message in warned) == [False, True]


def test_groups_of_plugins_are_groups(register: Callable[..., None], files: Callable[..., Path]) -> None:
    register(Plugin(tasks=files("plugin", g="group: several\ntask: [med_cls_demo]\n")))
    manager = plain_index()
    assert "several" in manager.all_groups
    assert manager.task_index["several"]["task"] == -1  # the host's sign for "read the file when called"


def test_strict_raises_when_the_index_is_built(
    register: Callable[..., None], files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    reset()
    assert set(plain_index().all_tasks) == OURS
    register(Plugin(tasks=files("plugin", bad="task: [\n")))
    with pytest.raises(PluginError, match=r"bad\.yaml, line"):
        plain_index()


class Faulty:
    """A manager that breaks where it is asked to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def tasks(self) -> dict[str, Any]:
        if self.where == "tasks":
            raise RuntimeError("tasks are broken")
        return dict(get_manager().tasks())

    @property
    def failures(self) -> list[Any]:
        if self.where == "failures":
            raise RuntimeError("failures are broken")
        return []


@pytest.mark.parametrize("where", ["tasks", "failures", "get_manager"])
def test_a_faulty_manager_does_not_cost_the_host_its_own_tasks(
    monkeypatch: pytest.MonkeyPatch, files: Callable[..., Path], warned: list[str], where: str
) -> None:
    """This runs in every command of a host that has us installed, also where nobody asks for our tasks."""
    broken = failing(RuntimeError("no manager")) if where == "get_manager" else lambda: Faulty(where)
    monkeypatch.setattr(task_index, "get_manager", broken)
    index = plain_index(include_path=str(files("theirs", a="task: theirs\ndataset_path: json\n")))
    assert "theirs" in index.all_tasks
    assert any("medmllm-plugins" in message for message in warned)


def test_the_kind_of_request_is_forgotten_after_an_error() -> None:
    assert task_loading().task_type == "simple"
    with pytest.raises(KeyError):
        plain_index().load_task_or_group("no_such_task", "chat")
    assert task_loading().task_type == "simple"


# -- the hook on the host's module -----------------------------------------------------------------------------------


@pytest.fixture
def not_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``lmms_eval.tasks`` as if it had not been imported; the real one is back afterwards."""
    monkeypatch.setattr(lmms_eval, "tasks", lmms_eval.tasks)
    monkeypatch.delitem(sys.modules, "lmms_eval.tasks")
    waiting = finders()
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder not in waiting])
    yield


def finders() -> list[task_manager_hook.ExtendingFinder]:
    """Return the finders that wait for the import of ``lmms_eval.tasks``."""
    waiting = [finder for finder in sys.meta_path if isinstance(finder, task_manager_hook.ExtendingFinder)]
    return [finder for finder in waiting if finder.module == task_manager_hook.TASKS_MODULE]


def hooked(module: ModuleType) -> bool:
    return set(module.TaskManager(include_defaults=False).all_tasks) == OURS


def test_hook_before_the_import(not_imported: None) -> None:
    task_manager_hook.install_task_hook()
    assert "lmms_eval.tasks" not in sys.modules and len(finders()) == 1
    module = importlib.import_module("lmms_eval.tasks")
    assert hooked(module)
    assert len(finders()) == 0  # one-shot: no other import is touched
    assert module.TaskManager.initialize_tasks.__doc__  # wrapped, and still itself


def test_hook_after_the_import(not_imported: None) -> None:
    module = importlib.import_module("lmms_eval.tasks")
    assert not hasattr(module.TaskManager, "medmllm_hook")
    assert module.TaskManager(include_defaults=False).all_tasks == []
    task_manager_hook.install_task_hook()
    assert hooked(module) and len(finders()) == 0


@pytest.mark.parametrize("imported", [False, True])
def test_hooking_twice_is_harmless(not_imported: None, monkeypatch: pytest.MonkeyPatch, imported: bool) -> None:
    if imported:
        importlib.import_module("lmms_eval.tasks")
    for _ in range(3):
        task_manager_hook.install_task_hook()
    assert len(finders()) == (0 if imported else 1)
    module = importlib.import_module("lmms_eval.tasks")
    task_manager_hook.install_task_hook()
    calls: list[int] = []
    real = task_index.add_tasks
    monkeypatch.setattr(task_index, "add_tasks", lambda index: calls.append(1) or real(index))  # type: ignore[func-returns-value]
    assert hooked(module) and calls == [1]


def test_looking_for_the_module_does_not_use_the_hook_up(not_imported: None) -> None:
    """Tools ask whether a module is there before they import it."""
    task_manager_hook.install_task_hook()
    module_spec = importlib.util.find_spec("lmms_eval.tasks")
    assert module_spec is not None and module_spec.origin is not None
    assert hooked(importlib.import_module("lmms_eval.tasks"))


def test_other_imports_are_left_alone(not_imported: None) -> None:
    task_manager_hook.install_task_hook()
    (finder,) = finders()
    assert finder.find_spec("lmms_eval.tasks.mme") is None
    assert finder.find_spec("lmms_eval") is None
    assert finder.find_spec("tasks") is None
    assert len(finders()) == 1


def test_an_import_that_fails_is_the_hosts_own_error(not_imported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms_eval, "__path__", [])
    task_manager_hook.install_task_hook()
    with pytest.raises(ModuleNotFoundError, match="lmms_eval"):
        importlib.import_module("lmms_eval.tasks")
