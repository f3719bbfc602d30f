"""Models opened by name, and transformers models that are in memory already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from medmllm_plugins import ModelError, OptionError, open_model, wrap_model
from medmllm_plugins.models.families.qwen2_5_vl import Qwen25VL
from medmllm_plugins.testing.tiny_families import write_family

LABELS = ("benign", "malignant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("qwen2_5_vl", tmp_path_factory.mktemp("own") / "checkpoint")


def test_a_wrapped_model_answers_as_the_opened_one(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    wrapped = wrap_model(model, AutoProcessor.from_pretrained(folder))  # type: ignore[no-untyped-call]
    opened = open_model("medmllm_hf", str(folder), device="cpu", dtype="float32")
    assert wrapped.model is model and not model.training
    assert not any(value.requires_grad for value in model.parameters())
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    answers = [each.generate(["Which?"], [image], max_new_tokens=4, labels=LABELS)[0] for each in (wrapped, opened)]
    assert answers[0] == answers[1] and answers[0].scores is not None


def test_the_fingerprint_is_that_of_the_weights(folder: Path) -> None:
    def wrapped() -> object:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        return wrap_model(model, AutoProcessor.from_pretrained(folder), family=Qwen25VL())  # type: ignore[no-untyped-call]

    first, second, changed = wrapped(), wrapped(), wrapped()
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[0] += 1e-6  # type: ignore[attr-defined]
    assert first.fingerprint == second.fingerprint != changed.fingerprint  # type: ignore[attr-defined]


def test_what_cannot_be_wrapped_or_opened_is_named(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(ModelError, match="Expected the model's processor, with a tokenizer and an image processor"):
        wrap_model(model, AutoProcessor.from_pretrained(folder).tokenizer)  # type: ignore[no-untyped-call]
    model.config.model_type = "unheard_of"
    with pytest.raises(ModelError, match="got 'unheard_of'"):
        wrap_model(model, AutoProcessor.from_pretrained(folder))  # type: ignore[no-untyped-call]
    with pytest.raises(OptionError, match="Expected a model that this package or a plugin loads, got 'medm_vll'"):
        open_model("medm_vll", "demo")
    with pytest.raises(OptionError, match=r"medm_vl: expected options among .*, got \['devise'\]"):
        open_model("medm_vl", "demo", devise="cpu")
