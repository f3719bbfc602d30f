"""Arguments of our models behind the host's chat interface, and checkpoints that cannot be loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.echo_model import Echo, ask, build, grey, user

from medmllm_plugins.errors import MedMLLMError, ModelError, OptionError
from medmllm_plugins.models.checkpoint import demo_folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("pretrained=demo,colour=red", ["['colour']", "attn_implementation, batch_size, device, device_map, dtype"]),
        ("pretrained=demo,max_pixels=3,min_pixels=1", ["['max_pixels', 'min_pixels']"]),
        ("", ["`pretrained=`", "demo", "2d-3b", "a hub id or a folder"]),
        ("device=cpu", ["`pretrained=`"]),
        ("pretrained=", ["`pretrained`", "''"]),
        ("pretrained=demo,dtype=float8", ["`dtype`", "bfloat16", "'float8'"]),
        ("pretrained=demo,dtype=16", ["`dtype`", "16"]),
        ("pretrained=demo,device=tpu", ["`device`", '"cuda:N"', "'tpu'"]),
        ("pretrained=demo,device=0", ["`device`", "0"]),
        ("pretrained=demo,device=cuda:99", ["device=cuda:99"]),
        ("pretrained=demo,attn_implementation=magic", ["`attn_implementation`", "sdpa", "'magic'"]),
        ("pretrained=demo,device=cpu,attn_implementation=flash_attention_2", ["flash_attention_2", "sdpa"]),
        ("pretrained=demo,max_new_tokens=0", ["`max_new_tokens`", "at least 1", "0"]),
        ("pretrained=demo,max_new_tokens=-3", ["`max_new_tokens`", "at least 1", "-3"]),
        ("pretrained=demo,max_new_tokens=many", ["`max_new_tokens`", "'many'"]),
        ("pretrained=demo,max_new_tokens=2.5", ["`max_new_tokens`", "2.5"]),
        ("pretrained=demo,max_new_tokens=true", ["`max_new_tokens`", "True"]),
        ("pretrained=demo,max_new_tokens=inf", ["`max_new_tokens`", "inf"]),
        ("pretrained=demo,run_dir=", ["`run_dir`", "''"]),
        ("pretrained=demo,twin=demo,twin_states=tape", ["`twin_states`", "memory or disk", "'tape'"]),
        ("pretrained=demo,twin=base", ["medm_vl", "base is known (none)", "'demo'", "twin=CHECKPOINT"]),
        ("pretrained=demo,twin_states=disk", ["`twin_states` together with `twin`"]),
        ("pretrained=demo,twin_peft=adapter", ["`twin_peft` together with `twin`"]),
    ],
)
def test_a_wrong_argument_says_what_was_expected(echo: Echo, arguments: str, says: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        build(arguments)
    assert isinstance(caught.value, MedMLLMError)
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert echo.loaded == []


@pytest.mark.parametrize("size", [0, -1, "two", 1.5, "0", "-1", "1.5", "", " 2", True, float("inf")])
def test_a_wrong_batch_size_is_refused(echo: Echo, size: Any) -> None:
    with pytest.raises(OptionError) as caught:
        build(batch_size=size)
    assert "`batch_size`" in str(caught.value) and repr(size) in str(caught.value)


def test_batch_size_may_come_as_text(echo: Echo) -> None:
    assert [build(batch_size=size).batch_size for size in ("16", 16, None)] == [16, 16, 1]


def test_max_batch_size_is_how_far_auto_goes(echo: Echo) -> None:
    model = build(batch_size="auto", max_batch_size=2)
    model.generate_until(ask(model, *(user(grey(number), f"q{number}") for number in range(9))))
    assert max(len(batch["questions"]) for batch in echo.batches) == 2
    for wrong in (0, -1, "many", 1.5):
        with pytest.raises(OptionError, match="max_batch_size"):
            build(max_batch_size=wrong)


@pytest.mark.parametrize("inside", ["", "sub/folder"])
def test_a_run_dir_that_cannot_be_made_is_refused(echo: Echo, tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OptionError) as caught:
        build(f"pretrained=demo,run_dir={tmp_path / 'file' / inside}")
    assert "`run_dir`" in str(caught.value) and str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_run_dir_may_be_there_or_not(echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "not/yet"):
        model = build(f"pretrained=demo,run_dir={tmp_path / folder}")
        model.generate_until(ask(model, user(grey(1), "q")))
        assert (tmp_path / folder / "manifest.json").is_file()


def test_a_tilde_in_run_dir_is_the_home_folder(
    echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: Callable[[], set[str]]
) -> None:
    """No shell expands it behind the ``=`` of a model argument."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = build("pretrained=demo,run_dir=~/runs")
    model.generate_until(ask(model, user(grey(1), "q")))
    assert everything() == {"home", "home/runs", "home/runs/manifest.json", "home/runs/seal.json"}


def test_the_hosts_device_option_is_taken(echo: Echo) -> None:
    assert build("pretrained=demo", device="cpu").device == "cpu"
    with pytest.raises(OptionError, match="`device`"):
        build("pretrained=demo", device="gpu0")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo that a test may spoil."""
    shutil.copytree(demo_folder(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_lacks_a_file_says_which(checkpoint: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    model = build(f"pretrained={checkpoint},device=cpu")
    with pytest.raises(ModelError) as caught:
        model.generate_until(ask(model, user(grey(1), "q")))
    assert missing in str(caught.value) and str(checkpoint) in str(caught.value)


def test_a_name_that_is_no_checkpoint_lists_those_there_are() -> None:
    model = build("pretrained=3b,device=cpu")
    with pytest.raises(ModelError) as caught:
        model.generate_until(ask(model, user(grey(1), "q")))
    assert "'3b'" in str(caught.value) and "demo, 2d-3b" in str(caught.value)


def test_a_checkpoint_that_cannot_be_loaded_leaves_no_run_folder(
    evaluate: Callable[..., Any], tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    """An argument that turns out wrong only at loading is still an argument that is wrong."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        evaluate(tmp_path / "out", limit=1, model_args=f"pretrained={tmp_path / 'empty'},device=cpu")
    assert everything() == {"empty"}
