"""Citrus-V: answers and scores of the Qwen2.5-VL in it, whichever names and settings it is stored with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_authors

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats import citrus_v
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.testing.tiny_families import write_family

QUESTIONS = ["What is it?", "Is it benign or malignant?"]
LABELS = ["benign", "malignant tumour", "no"]


def options(folder: Path, **more: Any) -> LoadOptions:
    return LoadOptions(str(folder), device="cpu", dtype="float32", **more)


def pictures() -> list[list[Image.Image]]:
    generator = np.random.default_rng(0)
    return [[Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8))] for w, h in ((60, 40), (50, 90))]


@pytest.mark.parametrize(("nested", "older"), [(True, False), (False, True)])
def test_answers_are_those_of_the_qwen_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nested: bool, older: bool
) -> None:
    folder = tiny_authors.citrus_v(tmp_path / "citrus", nested=nested, older=older)
    plain = ChatModel(open_native(options(write_family("qwen2_5_vl", tmp_path / "plain"))))
    with caplog.at_level(logging.WARNING):
        model = load_model(get_manager().models()["citrus_v"], options(folder))
    assert "4 tensors of the segmentation branch (grounding_encoder, seg_projector) are left aside" in caplog.text
    for name, value in plain.model.state_dict().items():
        assert model.model.state_dict()[name].equal(value), name
    rope, wanted = (each.model.config.get_text_config().rope_parameters for each in (model, plain))
    assert {key: rope[key] for key in wanted} == wanted
    answers, expected = (
        each.generate(QUESTIONS, pictures(), max_new_tokens=6, labels=LABELS) for each in (model, plain)
    )
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer.scores == pytest.approx(other.scores, abs=1e-5)
    assert model.family.model_type == "qwen2_5_vl" and model.fingerprint != plain.fingerprint


def test_the_general_model_is_loaded_as_such(tmp_path: Path) -> None:
    folder = write_family("qwen2_5_vl", tmp_path)
    model, plain = citrus_v.load(options(folder)), ChatModel(open_native(options(folder)))
    image = pictures()[:1]
    answers = [each.generate(QUESTIONS[:1], image, max_new_tokens=3, labels=LABELS) for each in (model, plain)]
    assert answers[0] == answers[1]


def test_other_files_are_refused(tmp_path: Path) -> None:
    folder = tiny_authors.citrus_v(tmp_path / "a")
    with pytest.raises(ModelError, match=r"got its authors' own \(citrus_v\)\. Use --model citrus_v"):
        open_native(options(folder))
    with pytest.raises(OptionError, match="Got `load_in=4bit`"):
        citrus_v.load(options(folder, load_in="4bit"))
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    for changes, message in (
        ({"model_type": "llava"}, r"expected a Citrus-V checkpoint.*got 'llava'; use --model medmllm_hf"),
        ({"vision_config": None}, "expected the vision tower's settings as `vision_config`, got none"),
        ({"text_config": [1]}, r"expected `text_config` to be an object, got \[1\]"),
        ({"text_config": {"num_hidden_layers": 5000}}, "expected `num_hidden_layers` to be at most 1000"),
    ):
        path.write_text(json.dumps({**raw, **changes}))
        with pytest.raises(ModelError, match=message):
            citrus_v.load(options(folder))
    path.write_text(json.dumps(raw))
    (folder / "tokenizer.json").rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=r"expected the tokenizer, image processor and chat template of Qwen2\.5-VL"):
        citrus_v.load(options(folder))
    (folder / "elsewhere").rename(folder / "tokenizer.json")
    tensors = load_file(folder / "model.safetensors")
    lost = "mllm.model.language_model.norm.weight"
    save_file({name: value for name, value in tensors.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing from the checkpoint: model\.language_model\.norm\.weight"):
        citrus_v.load(options(folder))
    save_file({**tensors, "extra_head.weight": tensors[lost].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"extra_head\.weight"):
        citrus_v.load(options(folder))
