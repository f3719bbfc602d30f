"""How the host gets to know our models, and that no fault of a plugin costs the host anything."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import lmms_eval
import lmms_eval.models
import lmms_eval.tasks
import pytest
from host.registration import (
    MANIFESTS,
    MEDM_VL,
    NAMES,
    PACKAGE,
    PREFIXES,
    Broken,
    Plugin,
    failing,
    spec,
)

from medmllm_plugins.errors import PluginError
from medmllm_plugins.host import entry_point
from medmllm_plugins.plugins.manager import reset

pytestmark = pytest.mark.usefixtures("own_tables")


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
    by_name = {manifest.model_id: manifest for manifest in entry_point.manifests()}
    assert by_name["medm_vl"] == MEDM_VL
    assert by_name["of_loader"].chat_class_path == "medmllm_plugins.host.registered_models.of_loader"
    assert by_name["of_wrapper"].chat_class_path == "package.module.Class"
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
