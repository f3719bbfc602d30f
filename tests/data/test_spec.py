"""Declarations of data sets: what is wrong with one is said, with its file."""

from __future__ import annotations

import contextlib
import datetime
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec, read_spec
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.layouts.table_options import TableOptions
from medmllm_plugins.data.loading import catalogue
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.data.loading.dataset_folder import is_present
from medmllm_plugins.errors import DataError, OptionError, PluginError
from medmllm_plugins.plugins import manager
from medmllm_plugins.prompts.task_names import declared_tasks
from medmllm_plugins.prompts.task_settings import ARGUMENTS, read_settings

LETTERS = "abcdefghi"
BOMB = "a: &a [l,l,l,l,l,l,l,l,l]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{earlier}'] * 9)}]\n" for earlier, name in itertools.pairwise(LETTERS)
)

SOUND: dict[str, Any] = {
    "name": "x",
    "title": "X",
    "layout": "phantoms",
    "modality": "image",
    "classes": {"a": ["first"], "b": None},
}


def test_sound_declaration_is_frozen_in_order() -> None:
    spec = parse_spec(SOUND, "x.yaml")
    assert spec.labels == ("a", "b")
    assert spec.classes == {"a": ("first",), "b": ()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layot": "busi"}, "layot"),
        ({"classes": {"a": ["first"]}}, "at least two class names"),
        ({"classes": ["a", "b"]}, "at least two class names"),
        ({"classes": {"a": "first", "b": None}}, "synonyms of class 'a' in `classes` to be a list, got 'first'"),
        ({"classes": {"a": {"x": 1}, "b": None}}, "synonyms of class 'a' in `classes` to be a list"),
        ({"positive": "c"}, "expected `positive` to be one of the classes, .*got 'c'"),
    ],
)
def test_faulty_declaration_is_an_error(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        parse_spec({**SOUND, **changes}, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- name: x\n", "expected keys and values, got"),
        (b"name: [\n", "line 2: expected YAML"),
        (b"name: \xff\n", "line 1: expected UTF-8"),
        (b"", "are missing"),
    ],
)
def test_faulty_file_is_an_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"broken.yaml.*{says}"):
        read_spec(path)


def test_every_shipped_declaration_can_be_cited() -> None:
    for spec in dataset_specs().values():
        assert spec.licence and spec.citation, spec.name
        assert spec.download or not spec.folder, spec.name


def test_layout_of_a_plugin_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "from medmllm_plugins.data.layouts.busi import Busi\nnot_a_class = 1\nclass Other: ...\n"
    (tmp_path / "throwaway_layouts.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(layout("throwaway_layouts:Busi")).__module__ == "medmllm_plugins.data.layouts.busi"
    for name, says in (
        ("nothing_of_that_name", "one of"),
        ("throwaway_layouts:Missing", "Missing"),
        ("throwaway_layouts:not_a_class", "not callable"),
        ("throwaway_layouts:Other", "to be a medmllm_plugins.data.layouts.layout_registry.Layout"),
        ("no_such_module:Busi", "no_such_module"),
    ):
        with pytest.raises(DataError, match=says):
            layout(name)


def test_specs_survive_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(SOUND, sort_keys=False), encoding="utf-8")
    assert read_spec(path) == parse_spec(SOUND, "elsewhere")


WRONG: dict[str, Any] = {
    "none": None,
    "true": True,
    "number": 7,
    "float": 2.0,
    "not a number": float("nan"),
    "date": datetime.date(2020, 1, 1),
    "bytes": b"x",
    "empty text": "",
    "blank text": "  ",
    "lines": "a\nb",
    "long text": "x" * 9000,
    "zero byte": "a\0b",
    "list": ["sick"],
    "list of lists": [["a"], ["b"]],
    "list of mappings": [{"a": 1}],
    "set": {"a", "b"},
    "empty list": [],
    "mapping": {"a": 1},
    "mapping of lists": {"a": ["x"], "b": ["y"]},
    "mapping of mappings": {"a": {"b": {}}, "c": {"d": {}}},
    "keys of several types": {1: "a", "b": None, None: "c"},
    "empty mapping": {},
}
GOOD: dict[str, set[str]] = {
    "name": set(),
    "title": {"long text", "zero byte"},
    "layout": {"long text", "zero byte"},
    "modality": {"long text", "zero byte"},
    "classes": {"mapping of lists"},
    "folder": {"empty text", "blank text", "lines"},
    "positive": {"none"},
    "licence": {"empty text", "blank text", "lines", "long text", "zero byte"},
    "citation": {"empty text", "blank text", "lines", "long text", "zero byte"},
    "download": {"empty text", "blank text", "lines", "long text", "zero byte"},
    "kind": set(),
    "dimensions": set(),
    "overlaps": {"empty mapping"},
    "notes": {"empty list", "list"},
    "findings": {"empty mapping"},
    "options": {"mapping", "mapping of lists", "mapping of mappings", "empty mapping"},
}
"""For each key the values above that are right for it; all others have to be refused."""


@pytest.mark.parametrize("key", list(DatasetSpec.model_fields))
def test_every_wrong_type_of_every_key_is_named(key: str) -> None:
    for kind, value in WRONG.items():
        if kind in GOOD[key]:
            parse_spec({**SOUND, key: value}, "x.yaml")
            continue
        with pytest.raises(DataError, match=rf"^x\.yaml: .*`{key}`") as caught:
            parse_spec({**SOUND, key: value}, "x.yaml")
        assert len(str(caught.value)) < 500, kind


@pytest.mark.parametrize("key", list(TableOptions.model_fields))
def test_every_wrong_type_of_every_option_of_a_table_is_our_error(tmp_path: Path, key: str) -> None:
    (tmp_path / "labels.csv").write_text("image,label\na,a\nb,b\n")
    options = {"labels": "labels.csv", "image_column": "image", "label_column": "label"}
    for value in (*WRONG.values(), "(" * 3000, "a{99999999999}", "**", "/x", "../x", {"train": 3}, {"train": "\0"}):
        spec = parse_spec(
            {**SOUND, "layout": "table", "folder": str(tmp_path), "options": {**options, key: value}}, "x.yaml"
        )
        with pytest.raises(DataError) as caught:  # there is no image, so that what is right fails too
            load_dataset(spec)
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({True: [], False: []}, "Put quotes around it"),
        ({None: [], "b": []}, "to be text, got None"),
        ({1: [], "1": []}, "that differ, got '1' twice"),
        ({"a": [True], "b": []}, "synonyms of class 'a' in `classes` to be text, got True"),
        ({"a": [], "b\u202e": []}, "to be text, got"),
        ({"a": [["x"]], "b": []}, "synonyms of class 'a' in `classes` to be text"),
    ],
)
def test_class_names_are_text(classes: dict[Any, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_spec({**SOUND, "classes": classes}, "x.yaml")


def test_class_names_may_be_whole_numbers() -> None:
    assert parse_spec({**SOUND, "classes": {0: [], 1: [2]}}, "x").classes == {"0": (), "1": ("2",)}


BROKEN = {
    "positive": yaml.safe_dump({**SOUND, "positive": ["sick"]}),
    "brackets": "[" * 2000,
    "bomb": BOMB,
    "number": "name: " + "9" * 5000,
    "binary": "name: \xff\xfe",
    "twice": "name: x\nname: y\n",
}


def test_a_faulty_declaration_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "datasets").mkdir()
    for name, text in BROKEN.items():
        (tmp_path / "datasets" / f"{name}.yaml").write_text(text, encoding="latin-1")
    (tmp_path / "datasets" / "sound.yaml").write_text(yaml.safe_dump({**SOUND, "name": "sound"}))
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path))
    manager.reset()
    try:
        names = set(dataset_specs())
        tasks = declared_tasks()
        dataset_specs()
        monkeypatch.setattr(manager.get_manager(), "strict", True)
        with pytest.raises(PluginError, match=r"datasets/\w+\.yaml"):
            dataset_specs()
    finally:
        manager.reset()
    assert {"sound", "demo", "busi"} <= names
    assert {"med_cls_sound", "med_cls_demo"} <= set(tasks)
    messages = [record.getMessage() for record in caplog.records]
    for name in BROKEN:
        assert sum(f"{name}.yaml" in message for message in messages) == 1, name
    assert max(map(len, messages)) < 600


def test_an_error_that_nobody_thought_of_is_that_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "strange.yaml").write_text("name: strange\n")
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path))
    manager.reset()
    sound = catalogue.read_spec
    for error in (RecursionError("deep"), MemoryError(), TypeError("unhashable"), OSError("gone")):

        def read(path: Path, error: Exception = error) -> DatasetSpec:
            if path.name == "strange.yaml":
                raise error
            return sound(path)

        monkeypatch.setattr(catalogue, "read_spec", read)
        try:
            read_all = catalogue.read_catalogue()
        finally:
            manager.reset()
        assert "demo" in read_all.declarations
        assert [fault for fault in read_all.faults if "strange.yaml" in fault and type(error).__name__ in fault]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.binary(max_size=3)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)
KEYS = list(DatasetSpec.model_fields)


@given(st.dictionaries(st.sampled_from(KEYS) | SCALARS, VALUES, max_size=4))
def test_any_declaration_is_good_or_our_error(changes: dict[Any, Any]) -> None:
    try:
        spec = parse_spec({**SOUND, **changes}, "x.yaml")
    except DataError as error:
        assert str(error).startswith("x.yaml: ") and len(str(error)) < 1000
        return
    with contextlib.suppress(DataError):
        load_dataset(spec.model_copy(update={"layout": "table"}))
    is_present(spec)


@given(st.dictionaries(st.sampled_from(ARGUMENTS) | SCALARS, VALUES, max_size=4), VALUES)
def test_any_settings_of_a_task_are_good_or_our_error(changes: dict[Any, Any], dataset: Any) -> None:
    for content in (
        {"dataset": "demo", **changes},
        {"dataset": dataset, **changes},
        {"dataset": {**SOUND, "name": dataset}},
    ):
        for purpose in ("classify", "probe", "attribute"):
            try:
                read_settings("x", {"medmllm": content}, purpose=purpose)  # type: ignore[arg-type]
            except (OptionError, DataError) as error:
                assert len(str(error)) < 1500
