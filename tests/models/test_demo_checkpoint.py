"""The embedded demo checkpoint: small, in the authors' layout, and right about phantoms it has not seen."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.phantom_images import phantom_dataset, phantom_images

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats.medm_vl import MedMVL, load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.tokens import encode_text
from medmllm_plugins.probes.anchors import run_anchors
from medmllm_plugins.prompts.protocols import ask as ask_question
from medmllm_plugins.prompts.wording import closed_set

torch.set_num_threads(1)
SPEC = dataset_specs()["demo"]
IMAGES, TRUTH = phantom_images("test", 120)


@pytest.fixture(scope="module")
def demo() -> MedMVL:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


def ask(demo: MedMVL, question: str, count: int) -> list[Generation]:
    """Answers about the first test phantoms, with a score for each label."""
    answers = []
    for start in range(0, count, 40):
        images = IMAGES[start : min(start + 40, count)]
        answers += demo.generate([question] * len(images), images, max_new_tokens=8, labels=SPEC.labels)
    return answers


@pytest.fixture(scope="module")
def answers(demo: MedMVL) -> list[Generation]:
    return ask(demo, closed_set(SPEC.modality, SPEC.labels), len(IMAGES))


def test_folder_is_small_and_whole() -> None:
    sizes = {path.name: path.stat().st_size for path in demo_folder().iterdir() if path.is_file()}
    assert sum(sizes.values()) <= 6 * 2**20
    whole = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert whole | {"preprocessor_config.json", "generation_config.json"} <= set(sizes)
    readme = (demo_folder() / "README.md").read_text()
    assert all(word in readme for word in ("synthetic", "examples/train_demo.py", "Not for clinical use"))


def test_config_is_the_authors_and_deep_enough() -> None:
    config = json.loads((demo_folder() / "config.json").read_text())
    assert "model_type" not in config
    assert config["llm_config"]["num_hidden_layers"] >= 6
    assert config["encoder_image_config"]["num_hidden_layers"] >= 6
    assert config["llm_config"]["num_key_value_heads"] < config["llm_config"]["num_attention_heads"]
    assert (config["encoder_image_type"], config["connector_image_name"]) == ("siglip", "mlp2x_gelu")


def test_tensors_bear_the_authors_names() -> None:
    pattern = re.compile(
        r"llm\.model\.(embed_tokens|norm|layers\.\d+)\.|encoder_image\.encoder\.vision_model\.|"
        r"connector_image\.connector\.[02]\.(weight|bias)$"
    )
    with safe_open(str(demo_folder() / "model.safetensors"), framework="pt") as handle:
        names = list(handle.keys())
        dtypes = {handle.get_tensor(name).dtype for name in names}
    assert [name for name in names if not pattern.match(name)] == []
    assert not any("lm_head" in name for name in names)
    assert dtypes == {torch.float16}


def test_answers_are_right(answers: list[Generation]) -> None:
    right = [answer.text.strip() == label for answer, label in zip(answers, TRUTH, strict=True)]
    assert sum(right) / len(right) >= 0.9


def test_every_class_is_answered_about_as_often_as_it_is_there(answers: list[Generation]) -> None:
    given, truth = Counter(answer.text.strip() for answer in answers), Counter(TRUTH)
    assert set(given) == set(SPEC.labels)
    assert all(abs(given[label] - truth[label]) <= 12 for label in SPEC.labels)


def test_label_scores_agree_with_the_answers(answers: list[Generation]) -> None:
    best = [SPEC.labels[max(range(4), key=lambda k, a=answer: a.scores[k])] for answer in answers]  # type: ignore[misc]
    agree = [label == answer.text.strip() for label, answer in zip(best, answers, strict=True)]
    assert sum(agree) / len(agree) >= 0.95


def test_answers_do_not_hang_on_the_order_of_the_options(demo: MedMVL) -> None:
    answers = ask(demo, closed_set(SPEC.modality, SPEC.labels[::-1]), 40)
    right = [answer.text.strip() == label for answer, label in zip(answers, TRUTH[:40], strict=True)]
    assert sum(right) / 40 >= 0.75  # a model that learnt positions would be near 0, chance is 0.25


def test_the_answer_comes_from_the_image(demo: MedMVL) -> None:
    """With the same grey image for all, one answer remains."""
    blank = IMAGES[0].point(lambda _: 128)
    given = demo.generate([closed_set(SPEC.modality, SPEC.labels)] * 2, [blank] * 2, max_new_tokens=8)
    assert given[0].text.strip() == given[1].text.strip() == "no finding"


def test_both_kinds_of_anchor_are_answered(demo: MedMVL) -> None:
    data = phantom_dataset()
    anchors = run_anchors(demo, data, ask_question("closed_set", SPEC.modality, SPEC.classes), data.select(["test"]))
    accuracies = {result.kind: result.accuracy.value for result in anchors.results}
    assert (anchors.text, anchors.positive) == ("answered", "answered")
    assert min(accuracies[kind] for kind in ("text", "presence", "position")) >= 0.9
    assert accuracies["count"] >= 0.6  # chance is a third


def test_wordings_that_training_did_not_see_are_answered(demo: MedMVL) -> None:
    held_out = {label: texts[3:] for label, texts in SPEC.findings.items()}
    spec = SPEC.model_copy(update={"findings": held_out})
    data = replace(phantom_dataset(), spec=spec)
    (result,) = run_anchors(demo, data, ask_question("closed_set", SPEC.modality, SPEC.classes), ()).results
    assert result.kind == "text" and result.n == 8
    assert result.accuracy.value >= 0.75  # chance is 0.25


def test_prompt_is_short(demo: MedMVL) -> None:
    inputs = demo.prepare([closed_set(SPEC.modality, SPEC.labels)], [IMAGES[0]])
    assert inputs["input_ids"].shape[1] <= 150
    assert demo.image_tokens == 64


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(demo: MedMVL, text: str) -> None:
    ids = encode_text(demo.tokenizer, text)
    assert demo.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)
