"""How the host gets to know our models and tasks, and that no fault of a plugin costs the host anything."""

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
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

import medmllm_plugins
from medmllm_plugins.errors import PluginError
from medmllm_plugins.host import entry_point, task_index, task_manager_hook
from medmllm_plugins.host.task_loading import task_loading
from medmllm_plugins.plugins import builtin
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager, reset
from medmllm_plugins.plugins.specs import ModelSpec, TaskFolder

PACKAGE = Path(medmllm_plugins.__file__).parent
PREFIXES = ("med_attr", "med_cls", "med_probe")
FILES = {f"{prefix}{ending}" for prefix in PREFIXES for ending in ("", "_medmnist")}
DATASETS = [path.stem for path in (PACKAGE / "tasks" / "datasets").glob("*.yaml")]
OURS = FILES | {
    f"{prefix}_{dataset}{ending}"
    for prefix in PREFIXES
    for dataset in DATASETS
    for ending in ("", "_letter", "_open")
    if not (ending and dataset in ("chestmnist", "chestxray14", "ct_rate"))  # findings are asked yes or no
}
MANIFESTS = [
    ModelManifest(model_id=spec.name, chat_class_path=f"medmllm_plugins.host.registered_models.{spec.name}")
    for spec in builtin.medmllm_models()
]
MEDM_VL = MANIFESTS[0]
NAMES = [manifest.model_id for manifest in MANIFESTS]


class Plugin:
    """A plugin registered in process, with the models and the task folder it is given."""

    def __init__(self, *models: ModelSpec, tasks: Path | None = None) -> None:
        self.models = models
        self.tasks = tasks

    @hookimpl
    def medmllm_models(self) -> list[ModelSpec]:
        return list(self.models)

    @hookimpl
    def medmllm_tasks(self) -> list[TaskFolder]:
        return [] if self.tasks is None else [TaskFolder(path=str(self.tasks))]


class Broken(Plugin):
    @hookimpl
    def medmllm_models(self) -> list[ModelSpec]:
        raise RuntimeError("this plugin is broken")


@pytest.fixture(autouse=True)
def own_tables(fresh_manager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's listings as copies, since what is registered shows in them."""
    for table in ("AVAILABLE_SIMPLE_MODELS", "AVAILABLE_CHAT_TEMPLATE_MODELS"):
        monkeypatch.setattr(lmms_eval.models, table, dict(getattr(lmms_eval.models, table)))


@pytest.fixture
def register() -> Callable[..., None]:
    def call(plugin: Plugin, name: str = "throwaway") -> None:
        get_manager().pluggy.register(plugin, name=name)

    return call


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write ``NAME.yaml`` files into a folder."""

    def call(folder: str, **contents: str) -> Path:
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / f"{name}.yaml").write_text(content)
        return tmp_path / folder

    return call


def spec(name: str, **changes: Any) -> ModelSpec:
    return ModelSpec(**{"name": name, "summary": "A model.", "loader": "nowhere.module:load", **changes})


def plain_index(**settings: Any) -> TaskManager:
    """A task manager without the host's own tasks, which take seconds to read."""
    return TaskManager(include_defaults=False, **settings)


# -- models ----------------------------------------------------------------------------------------------------------


def test_the_hosts_registry_knows_our_model() -> None:
    from lmms_eval.api.model import lmms

    assert entry_point.manifests() == MANIFESTS
    assert "medm_vl" in lmms_eval.models.list_available_models()
    model = lmms_eval.models.get_model("medm_vl")
    assert issubclass(model, lmms) and model.is_simple is False
    assert (model.__name__, model.__module__) == ("medm_vl", "medmllm_plugins.host.registered_models")
    assert model.spec.loader == "medmllm_plugins.models.formats.medm_vl:load"


def test_the_entry_points_lead_here() -> None:
    from importlib.metadata import entry_points

    for group, function in (("lmms_eval.models", entry_point.manifests), ("lmms_eval.tasks", entry_point.task_folders)):
        (entry,) = [entry for entry in entry_points(group=group) if entry.name == "medmllm_plugins"]
        assert entry.load() is function


def test_a_class_of_an_unknown_model_is_an_attribute_error() -> None:
    from medmllm_plugins.host import registered_models

    with pytest.raises(AttributeError, match="no registered model has that name"):
        _ = registered_models.no_such_model
    assert not hasattr(registered_models, "no_such_model")  # what import machinery asks


def test_plugin_models_are_named_beside_ours(register: Callable[..., None]) -> None:
    register(Plugin(spec("of_loader"), spec("of_wrapper", loader=None, wrapper="package.module.Class")))
    found = {manifest.model_id: manifest for manifest in entry_point.manifests()}
    assert found["medm_vl"] == MEDM_VL
    assert found["of_loader"].chat_class_path == "medmllm_plugins.host.registered_models.of_loader"
    assert found["of_wrapper"].chat_class_path == "package.module.Class"
    # `lmms-eval models` reads this table.
    assert lmms_eval.models.AVAILABLE_CHAT_TEMPLATE_MODELS["of_wrapper"] == "package.module.Class"
    # The host imports by the dotted path.
    assert importlib.import_module("medmllm_plugins.host.registered_models").of_loader.spec.name == "of_loader"


def test_manifests_may_be_asked_for_twice(warned: list[str]) -> None:
    assert entry_point.manifests() == entry_point.manifests() == MANIFESTS
    assert warned == []


@pytest.mark.parametrize("name", ["dummy", "qwen2_5_vl", "async_openai"])
def test_a_models_name_that_the_host_has_stays_the_hosts(
    register: Callable[..., None], warned: list[str], name: str
) -> None:
    register(Plugin(spec(name), spec("of_its_own")))
    assert [manifest.model_id for manifest in entry_point.manifests()] == [*NAMES, "of_its_own"]
    assert len(warned) == 1 and f"'{name}'" in warned[0] and "left out" in warned[0]


@pytest.mark.parametrize("name", ["gemini_api", "openai_compatible", "dummy_video_reader"])
def test_a_models_second_name_in_the_host_stays_the_hosts(
    register: Callable[..., None], warned: list[str], name: str
) -> None:
    """The host registers plugins with overwriting: what we hand over under such a name would take it away."""
    assert any(name in names for names in lmms_eval.models.MODEL_ALIASES.values())
    register(Plugin(spec(name)))
    assert entry_point.manifests() == MANIFESTS
    assert len(warned) == 1 and f"'{name}'" in warned[0]


def failing(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("get_manager", RuntimeError("no manager")),
        ("get_manager", PluginError("strict")),
        ("get_manager", RecursionError()),
        ("get_manager", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")),
        ("install_task_hook", OSError("no hook")),
        ("install_task_hook", ImportError("no module")),
        ("_manifests", AttributeError("the host has changed")),
    ],
    ids=repr,
)
def test_manifests_never_raise(
    monkeypatch: pytest.MonkeyPatch, warned: list[str], function: str, error: BaseException
) -> None:
    """One exception would drop the models of every other package."""
    monkeypatch.setattr(entry_point, function, failing(error))
    assert entry_point.manifests() == []
    assert len(warned) == 1 and type(error).__name__ in warned[0] and "medmllm-plugins" in warned[0]


def test_task_folders_never_raise(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    assert [Path(folder) for folder in entry_point.task_folders()] == [
        PACKAGE / "tasks" / folder for folder in PREFIXES
    ]
    monkeypatch.setattr(entry_point, "get_manager", failing(RuntimeError("no manager")))
    assert entry_point.task_folders() == []
    assert len(warned) == 1 and "RuntimeError" in warned[0]


@pytest.mark.parametrize("table", ["AVAILABLE_SIMPLE_MODELS", "AVAILABLE_CHAT_TEMPLATE_MODELS", "MODEL_ALIASES"])
def test_a_host_without_its_tables_gets_our_models_all_the_same(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    monkeypatch.delattr(lmms_eval.models, table)
    assert entry_point.manifests() == MANIFESTS


def test_a_host_of_another_make_gets_nothing_and_no_error(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)  # importing it raises ImportError
    assert entry_point.manifests() == []
    assert len(warned) == 1


def test_a_broken_plugin_costs_its_own_models_only(register: Callable[..., None]) -> None:
    register(Broken(), "broken")
    register(Plugin(spec("sound")), "sound")
    assert [manifest.model_id for manifest in entry_point.manifests()] == [*NAMES, "sound"]


def test_strict_names_no_models_but_does_not_raise_here(
    register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    reset()
    register(Broken())
    assert entry_point.manifests() == []
    assert len(warned) == 1 and "PluginError" in warned[0] and "this plugin is broken" in warned[0]


def test_models_that_the_host_did_not_find_are_added(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    """One damaged entry_points.txt of any package makes the host read none."""
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    monkeypatch.setattr(lmms_eval.models, "MODEL_REGISTRY_V2", registry)
    monkeypatch.setattr(lmms_eval.models, "AVAILABLE_MODELS", {})
    entry_point.register_models()
    assert registry.list_canonical_model_ids() == sorted(NAMES)
    assert lmms_eval.models.AVAILABLE_MODELS["medm_vl"] == "medm_vl"
    assert len(warned) == 1 and "medmllm doctor" in warned[0]
    entry_point.register_models()
    assert len(warned) == 1


def test_a_slow_plugin_is_named_in_the_log(
    register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    from medmllm_plugins.plugins import guard

    monkeypatch.setattr(guard, "SLOW", -1.0)
    register(Plugin(spec("slow")), "slow")
    assert "slow" in [manifest.model_id for manifest in entry_point.manifests()]
    assert any("plugin slow" in message and "medmllm_models took" in message for message in warned)


# -- tasks -----------------------------------------------------------------------------------------------------------


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
    found = set()
    for path in paths:
        simple, full = (load_yaml_config(str(path), mode=mode) for mode in ("simple", "full"))
        assert set(simple) == set(full)
        assert full["metadata"]["version"]
        assert set(full["task"]) < OURS
        found.add(full["group"])
    assert found == FILES


def test_declared_tasks_load_with_the_hosts_own_loader() -> None:
    """Its listing reads the file that stands behind each name."""
    from medmllm_plugins.host.attribution_tasks import AttributingTask
    from medmllm_plugins.host.probe_tasks import ProbingTask
    from medmllm_plugins.host.tasks import ClassificationTask

    classes = {"med_attr": AttributingTask, "med_probe": ProbingTask, "med_cls": ClassificationTask}
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
    found = plain_index()
    assert "several" in found.all_groups
    assert found.task_index["several"]["task"] == -1  # the host's sign for "read the file when called"


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
    found = importlib.util.find_spec("lmms_eval.tasks")
    assert found is not None and found.origin is not None
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
