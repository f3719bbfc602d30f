"""Declarations of data sets: what is wrong with one is said, with its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from medmllm_plugins.data.catalogue import dataset_specs
from medmllm_plugins.data.layouts import layout
from medmllm_plugins.data.spec import parse_spec, read_spec
from medmllm_plugins.errors import DataError

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
        ({"classes": {"a": "first", "b": None}}, "synonyms of class 'a' to be a list, found 'first'"),
        ({"classes": {"a": {"x": 1}, "b": None}}, "synonyms of class 'a' to be a list"),
        ({"positive": "c"}, "positive class 'c' is none of"),
    ],
)
def test_faulty_declaration_is_an_error(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        parse_spec({**SOUND, **changes}, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- name: x\n", "expected keys and values, found"),
        (b"name: [\n", "expected YAML in UTF-8"),
        (b"name: \xff\n", "expected YAML in UTF-8"),
        (b"", "are missing"),
    ],
)
def test_faulty_file_is_an_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"broken.yaml: .*{says}"):
        read_spec(path)


def test_every_shipped_declaration_can_be_cited() -> None:
    for spec in dataset_specs().values():
        assert spec.licence and spec.citation, spec.name
        assert spec.download or not spec.folder, spec.name


def test_layout_of_a_plugin_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "from medmllm_plugins.data.busi import Busi\nnot_a_class = 1\nclass Other: ...\n"
    (tmp_path / "throwaway_layouts.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(layout("throwaway_layouts:Busi")).__module__ == "medmllm_plugins.data.busi"
    for name, says in (
        ("nothing_of_that_name", "one of"),
        ("throwaway_layouts:Missing", "Missing"),
        ("throwaway_layouts:not_a_class", "not callable"),
        ("throwaway_layouts:Other", "to be a medmllm_plugins.data.layouts.Layout"),
        ("no_such_module:Busi", "no_such_module"),
    ):
        with pytest.raises(DataError, match=says):
            layout(name)


def test_specs_survive_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(SOUND, sort_keys=False), encoding="utf-8")
    assert read_spec(path) == parse_spec(SOUND, "elsewhere")
