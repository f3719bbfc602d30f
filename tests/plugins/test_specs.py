"""Declarations of plugins: what they refuse, and that they are immutable."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from support.plugin_site import Site

from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, PromptStyle, TaskFolder


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
        ({"wrapper": "a.B"}, "at most one"),
        ({"family": "Qwen VL"}, "`family`"),
        ({"family": "a.b:"}, "`family`"),
        ({"family": None}, "`family`"),
        ({"prompt_style": "polite"}, "`prompt_style`"),
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
        ({"base": ["7b"]}, "`base`"),
        ({"sizes": {"7b": "owner/name"}, "base": {"8b": "other/name"}}, "`base` to have names of `sizes`, got .'8b'."),
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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"system": 3}, "`system`"),
        ({"question": "Think."}, "to hold {question}"),
        ({"opening": None}, "`opening`"),
        ({"template": "thinking"}, "`template`"),
        ({"max_new_tokens": 0}, "`max_new_tokens`"),
        ({"max_new_tokens": True}, "`max_new_tokens`"),
    ],
)
def test_prompt_style_refuses(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        PromptStyle(**changes)


def test_prompt_style_asks_with_the_question_as_it_is() -> None:
    style = PromptStyle(question="{question} Think.", template={"enable_thinking": False})
    assert style.ask("What {is} it, {question}?") == "What {is} it, {question}? Think."
    assert hash(style) == hash(PromptStyle(question="{question} Think."))


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


@pytest.mark.parametrize(
    ("pretrained", "base"),
    [
        ("7b", "general/Base-7B"),
        ("owner/Tuned-7B", "general/Base-7B"),
        ("/models/Tuned-7B/", "general/Base-7B"),
        ("13b", None),
        ("owner/Tuned-13B", None),
        ("/models/another", None),
    ],
)
def test_the_base_of_a_checkpoint(pretrained: str, base: str | None) -> None:
    sizes = {"7b": "owner/Tuned-7B", "13b": "owner/Tuned-13B"}
    spec = ModelSpec(name="a", summary="A model.", sizes=sizes, base={"7b": "general/Base-7B"})
    assert spec.base_of(pretrained) == base


def test_general_models_of_medical_ones_are_stated() -> None:
    models = get_manager().models()
    assert models["lingshu"].base_of("32b") == "Qwen/Qwen2.5-VL-32B-Instruct"
    assert models["medgemma"].base_of("google/medgemma-4b-it") == "google/gemma-3-4b-it"
    assert models["citrus_v"].base_of("8b") == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert models["chiron_o1"].base_of("2b") == "OpenGVLab/InternVL3-2B"
    tuned = {"aloe_vision", "chiron_o1", "citrus_v", "huatuogpt_vision", "lingshu", "lingshu_i"}
    tuned |= {"medgemma", "medvlm_r1", "shizhengpt"}
    assert {name for name, spec in models.items() if spec.base} == tuned


@pytest.mark.parametrize("path", ["", "tasks", "pkg:", ":tasks", "pkg:/tasks", "pkg:../tasks", "a b:tasks", 5, None])
def test_task_folder_refuses(path: Any) -> None:
    with pytest.raises(OptionError, match="`path`"):
        TaskFolder(path=path)


@pytest.mark.parametrize("kind", [ProbeSpec, AttributionSpec])
@pytest.mark.parametrize(
    "changes", [{"name": "A"}, {"target": "a.b"}, {"summary": " "}, {"citation": 5}, {"description": None}]
)
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
