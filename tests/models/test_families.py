"""Every family of transformers through our interface: equal to transformers called plainly, and its silent traps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import FewShotExample, FewShotPrompt
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.families.family_registry import FAMILIES
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import ModelSpec, PromptStyle
from medmllm_plugins.testing.answer_checks import check_answer_depends_on_the_image, check_batched_equals_single
from medmllm_plugins.testing.check_subjects import ModelSubject
from medmllm_plugins.testing.resources import Resources
from medmllm_plugins.testing.stage_checks import check_hooks_fire_once, check_stages_are_found
from medmllm_plugins.testing.tiny_checkpoints import randomise
from medmllm_plugins.testing.tiny_families import FAMILIES as TINY
from medmllm_plugins.testing.tiny_families import write_family

QUESTIONS = [
    "What is it?",
    "Classify this breast ultrasound image into one of the following categories: benign, malignant.",
    "Is it benign? " * 4,
]
# They share beginnings, one is the beginning of another, and they differ in length.
LABELS = ["benign", "malignant tumour", "benign tumour", "no", "malignant"]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 60, 40), picture(1, 64, 64), picture(2, 50, 90)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints on disk, one of each family, written when first asked for."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_family(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def load(folders: Callable[[str], Path]) -> Callable[..., ChatModel]:
    made: dict[tuple[str, str], ChatModel] = {}

    def loaded(kind: str, attention: str = "sdpa") -> ChatModel:
        if (kind, attention) not in made:
            options = LoadOptions(str(folders(kind)), device="cpu", attn_implementation=attention)
            made[kind, attention] = ChatModel(open_native(options))
        return made[kind, attention]

    return loaded


def subject(kind: str, folders: Callable[[str], Path]) -> ModelSubject:
    """A family as the checks for plugins take it."""
    spec = ModelSpec(name=kind, summary="A tiny random model.")
    return ModelSubject(spec, Resources(checkpoint=folders(kind), device="cpu"))


def plain(model: ChatModel, question: str, image: Any) -> dict[str, torch.Tensor]:
    """The input of one question, by transformers' own processor and chat template called plainly."""
    processor = model.processor
    if processor.chat_template is None:
        result = processor(text="<image>" + question, images=image, return_tensors="pt")
    else:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        result = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    return {name: value for name, value in result.items() if name != "labels"}


def lengthened(inputs: dict[str, torch.Tensor], ids: list[int], kind: str) -> dict[str, torch.Tensor]:
    """A prompt with a label behind it, for a whole forward pass."""
    more = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    more["mm_token_type_ids"] = torch.zeros(1, len(ids), dtype=torch.long)
    # PaliGemma's prompt sees itself both ways (type 0); what follows is written word by word (type 1).
    more["token_type_ids"] = torch.full((1, len(ids)), int(kind == "paligemma"))
    return {
        name: torch.cat([value, more[name].to(value.dtype)], dim=1) if name in more else value
        for name, value in inputs.items()
    }


def log_p(model: ChatModel, inputs: dict[str, torch.Tensor], ids: list[int], kind: str) -> float:
    if hasattr(model.model.model, "rope_deltas"):
        model.model.model.rope_deltas = None
    logits = model.model(**lengthened(inputs, ids, kind)).logits[0].double().log_softmax(-1)
    at = inputs["input_ids"].shape[1] - 1
    return float(sum(logits[at + place, token] for place, token in enumerate(ids)))


def plain_answer(model: ChatModel, inputs: dict[str, torch.Tensor], new: int) -> str:
    out = model.model.generate(
        **inputs, do_sample=False, max_new_tokens=new, eos_token_id=list(model.eos_token_ids), pad_token_id=0
    )[0, inputs["input_ids"].shape[1] :].tolist()
    ended = next((place for place, token in enumerate(out) if token in model.eos_token_ids), len(out))
    return str(model.tokenizer.decode(out[:ended], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *[(kind, "sdpa") for kind in TINY],
        # Masks of images and windows are made otherwise for this attention; elsewhere it is transformers' concern.
        *[
            pytest.param(kind, "eager", marks=[] if kind in ("qwen2_5_vl", "gemma3") else pytest.mark.slow)
            for kind in TINY
        ],
    ],
)
def test_answers_and_scores_are_those_of_transformers_called_plainly(
    load: Callable[..., ChatModel], kind: str, attention: str
) -> None:
    model = load(kind, attention)
    result = model.generate(QUESTIONS, IMAGES, max_new_tokens=6, labels=LABELS)
    for question, image, answer in zip(QUESTIONS, IMAGES, result, strict=True):
        inputs = plain(model, question, image)
        assert answer.text == plain_answer(model, inputs, 6)
        assert answer.scores is not None
        for ids, score in zip(model.label_ids(question, LABELS), answer.scores, strict=True):
            assert score == pytest.approx(log_p(model, inputs, ids, kind), abs=1e-3)
    assert len({answer.scores for answer in result}) == 3


@pytest.mark.parametrize("kind", TINY)
def test_a_batch_gives_what_single_questions_give(folders: Callable[[str], Path], kind: str) -> None:
    check_batched_equals_single(subject(kind, folders))


@pytest.mark.parametrize("kind", TINY)
def test_another_image_gives_another_score(folders: Callable[[str], Path], kind: str) -> None:
    check_answer_depends_on_the_image(subject(kind, folders))


@pytest.mark.parametrize("kind", TINY)
def test_the_tree_of_labels_scores_as_one_row_for_each_does(
    load: Callable[..., ChatModel], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(kind)
    tree = model.generate(QUESTIONS, IMAGES, max_new_tokens=0, labels=LABELS)
    monkeypatch.setattr(generation, "_takes_masks", lambda *_: False)
    rows = model.generate(QUESTIONS, IMAGES, max_new_tokens=0, labels=LABELS)
    for item, other in zip(tree, rows, strict=True):
        assert item.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind not in ("llava", "llava_next", "paligemma")])
def test_several_images_in_one_question(load: Callable[..., ChatModel], kind: str) -> None:
    model = load(kind)
    (both,) = model.generate([QUESTIONS[0]], [IMAGES[:2]], max_new_tokens=0, labels=LABELS)
    (turned,) = model.generate([QUESTIONS[0]], [IMAGES[1::-1]], max_new_tokens=0, labels=LABELS)
    (item,) = model.generate([QUESTIONS[0]], [IMAGES[:1]], max_new_tokens=0, labels=LABELS)
    assert both.scores != pytest.approx(item.scores, abs=1e-3)
    assert both.scores != pytest.approx(turned.scores, abs=1e-3)


@pytest.mark.parametrize("kind", TINY)
def test_every_stage_is_there_and_takes_part(folders: Callable[[str], Path], kind: str) -> None:
    family = subject(kind, folders)
    check_stages_are_found(family)
    check_hooks_fire_once(family)


def test_a_wrong_stage_name_says_what_is_wrong(load: Callable[..., ChatModel]) -> None:
    with pytest.raises(ModelError, match=r"expected a module 'model\.tower', got none"):
        stage_module(load("llava").model, "model.tower")


# -- silent traps: each fails when the fix is taken out ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_image_tokens_without_their_types_would_be_placed_like_text(
    load: Callable[..., ChatModel], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(kind)
    prepare = model.prepare
    inputs = prepare(QUESTIONS[:1], IMAGES[:1])
    right = model.prefill(inputs)
    assert int(right.next_position[0]) != int(inputs["attention_mask"].sum())
    del inputs["mm_token_type_ids"]
    with pytest.raises(ModelError, match="expected `mm_token_type_ids` among the inputs"):
        model.prefill(inputs)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_of_an_earlier_batch_are_not_taken_for_this_ones(load: Callable[..., ChatModel], kind: str) -> None:
    model = load(kind)
    fresh = model.generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=4, labels=LABELS)
    model.generate([QUESTIONS[2]] * 3, IMAGES, max_new_tokens=2)
    model.model.model.rope_deltas = torch.full((1, 1), 1000)
    assert model.generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=4, labels=LABELS) == fresh


def test_gemma_sees_an_image_both_ways(load: Callable[..., ChatModel]) -> None:
    model = load("gemma3")
    inputs = model.prepare(QUESTIONS[:1], IMAGES[:1])
    assert "token_type_ids" in inputs and int(inputs["token_type_ids"].sum()) == 4
    with_types = model.prefill(inputs).logits
    without = model.prefill({k: v for k, v in inputs.items() if k != "token_type_ids"}).logits
    assert (with_types - without).abs().max() > 1e-3


def test_paligemma_counts_from_one(load: Callable[..., ChatModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("paligemma")
    right = model.prefill(model.prepare(QUESTIONS[:1], IMAGES[:1])).next_position
    monkeypatch.setattr(type(model.family), "first_position", 0)
    wrong = model.prefill(model.prepare(QUESTIONS[:1], IMAGES[:1])).next_position
    assert int(right[0]) == int(wrong[0]) + 1


def test_a_first_token_is_not_written_twice(load: Callable[..., ChatModel]) -> None:
    model = load("paligemma")
    begin = model.tokenizer.bos_token_id
    assert int((model.prepare(QUESTIONS[:1], IMAGES[:1])["input_ids"] == begin).sum()) == 1


def test_a_window_that_would_slide_past_the_prompt_is_scored_row_by_row(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "narrow"
    shutil.copytree(folders("gemma3"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    model = ChatModel(open_native(LoadOptions(str(folder), device="cpu")))
    (item,) = model.generate(QUESTIONS[1:2], IMAGES[1:2], max_new_tokens=0, labels=LABELS)
    inputs = plain(model, QUESTIONS[1], IMAGES[1])
    assert inputs["input_ids"].shape[1] > 24
    for ids, score in zip(model.label_ids(QUESTIONS[1], LABELS), item.scores or (), strict=True):
        assert score == pytest.approx(log_p(model, inputs, ids, "gemma3"), abs=1e-3)


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    import shutil

    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_an_unknown_family(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(folders("llava"), tmp_path / "x", model_type="florence2")
    with pytest.raises(ModelError, match=r"expected the architecture .* one of qwen2_vl, .* got 'florence2'"):
        open_native(LoadOptions(str(folder), device="cpu"))


def test_another_family_than_the_models(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"architecture qwen2_5_vl, got 'llava'; use --model medmllm_hf"):
        open_native(LoadOptions(str(folders("llava")), device="cpu"), family=FAMILIES["qwen2_5_vl"])


def test_code_of_the_checkpoints_own_is_not_run_unasked(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(folders("llava"), tmp_path / "x", auto_map={"AutoModel": "modeling_x.X"})
    with pytest.raises(ModelError, match=r"brings code of its own \(modeling_x\.X\).*trust_remote_code="):
        open_native(LoadOptions(str(folder), device="cpu"))
    with pytest.raises(OptionError, match="Expected `trust_remote_code` to be the name of the checkpoint"):
        LoadOptions(str(folder), trust_remote_code="True")


def test_pickled_weights_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(folders("llava"), tmp_path / "x")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        open_native(LoadOptions(str(folder), device="cpu"))


@pytest.mark.parametrize("cut", [0, 100, -1000])
def test_half_a_download(folders: Callable[[str], Path], tmp_path: Path, cut: int) -> None:
    folder = changed(folders("llava"), tmp_path / "x")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        open_native(LoadOptions(str(folder), device="cpu"))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "llava", "internvl"])
def test_tensors_that_are_missing_or_left_over_are_errors(
    folders: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(folders(kind), tmp_path / "x")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in sorted(tensors) if "proj" in name or "merger" in name)
    held = tensors.pop(lost)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fit the model that config\.json describes: 1 missing"):
        open_native(LoadOptions(str(folder), device="cpu"))
    save_file({**tensors, lost: held, "model.something.else": held.clone()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="1 unexpected"):
        open_native(LoadOptions(str(folder), device="cpu"))


def test_a_tower_that_was_never_trained_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = TINY["llava"]()
    for block in model.model.vision_tower.encoder.layers:
        for value in block.parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=model.config.vision_config.initializer_range)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr("medmllm_plugins.models.weight_warnings.LEAST", 512)
    native = open_native(LoadOptions(str(tmp_path), device="cpu"))
    assert any("vision tower" in doubt and "never been trained" in doubt for doubt in native.weight_warnings)


def test_a_connector_that_is_all_zeros_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma 3's is made: an answer comes all the same, and the image has no part in it."""
    model, processor = TINY["gemma3"]()
    randomise(model)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.zero_()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr("medmllm_plugins.models.weight_warnings.LEAST", 512)
    native = open_native(LoadOptions(str(tmp_path), device="cpu"))
    assert [doubt for doubt in native.weight_warnings if "connector" in doubt]
    assert not [doubt for doubt in native.weight_warnings if "vision tower" in doubt]


def test_a_template_without_a_place_for_images(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(folders("qwen2_5_vl"), tmp_path / "x")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|image_pad|>", ""))
    with pytest.raises(ModelError, match=r"expected a chat template that puts <\|image_pad\|>"):
        ChatModel(open_native(LoadOptions(str(folder), device="cpu")))


def test_names_of_special_tokens_in_a_question_are_refused(load: Callable[..., ChatModel]) -> None:
    with pytest.raises(ModelError, match="takes for a special token"):
        load("qwen2_5_vl").generate(["What <|im_end|> is it?"], IMAGES[:1], max_new_tokens=1)


@pytest.mark.parametrize("labels", [["benign", " benign "], ["", "no"]])
def test_labels_that_cannot_be_told_apart(load: Callable[..., ChatModel], labels: list[str]) -> None:
    with pytest.raises(ModelError, match=r"labels that differ as tokens|cannot be scored: it is empty"):
        load("llava").generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=0, labels=labels)


def test_what_is_no_image_or_none(load: Callable[..., ChatModel]) -> None:
    with pytest.raises(ModelError, match="PIL image, got str"):
        load("llava").generate(QUESTIONS[:1], ["x.png"], max_new_tokens=0)  # type: ignore[list-item]
    with pytest.raises(ModelError, match="at least one image a question"):
        load("llava").generate(QUESTIONS[:1], [[]], max_new_tokens=0)
    with pytest.raises(ModelError, match="one question for each image"):
        load("llava").prepare(QUESTIONS, IMAGES[:1])


def test_a_system_prompt_an_opening_and_a_manner_of_asking(folders: Callable[[str], Path]) -> None:
    native = open_native(LoadOptions(str(folders("qwen2_5_vl")), device="cpu"))
    manner = PromptStyle(system="You are polite.", question="{question} Think.", opening="<answer>")
    model = ChatModel(native, manner)
    prompt = model.render("What?")
    assert prompt.startswith("<|im_start|>system\nYou are polite.<|im_end|>") and "What? Think." in prompt
    (item,) = model.generate(["What?"], IMAGES[:1], max_new_tokens=0, labels=LABELS)
    inputs = model.prepare(["What?"], IMAGES[:1])
    for ids, score in zip(model.label_ids("What?", LABELS), item.scores or (), strict=True):
        whole = log_p(model, inputs, ids, "qwen2_5_vl")
        opening = log_p(model, inputs, ids[: model.prefix_length], "qwen2_5_vl")
        assert score == pytest.approx(whole - opening, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load_in": "4bit"}, "needs the package bitsandbytes|needs a CUDA device"),
        ({"load_in": "2bit"}, "Expected `load_in` to be one of 8bit, 4bit"),
        ({"device_map": "everywhere"}, "Expected `device_map` to be one of auto"),
        ({"peft": "/nowhere/at/all"}, "peft|Expected `pretrained` to be a folder"),
    ],
)
def test_options_that_cannot_be_had(folders: Callable[[str], Path], options: dict[str, Any], says: str) -> None:
    with pytest.raises((OptionError, ModelError), match=says):
        open_native(LoadOptions(str(folders("llava")), device="cpu", **options))


def test_an_adapter_is_merged(folders: Callable[[str], Path], load: Callable[..., ChatModel], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the package peft is not installed, which loads adapters")
    base = open_native(LoadOptions(str(folders("qwen2_5_vl")), device="cpu")).model
    targets = r"model\.language_model\..*q_proj"
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets, lora_alpha=64))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn_like(value))
    adapted.save_pretrained(tmp_path / "adapter")
    options = LoadOptions(str(folders("qwen2_5_vl")), device="cpu", peft=str(tmp_path / "adapter"))
    model = ChatModel(open_native(options))
    inputs = load("qwen2_5_vl").prepare(QUESTIONS[:1], IMAGES[:1])
    with torch.no_grad():
        adapted.base_model.model.model.rope_deltas = None
        expected = adapted(**inputs).logits
        model.model.model.rope_deltas = None
        torch.testing.assert_close(model.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    plain_scores = load("qwen2_5_vl").generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=0, labels=LABELS)[0].scores
    assert model.generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=0, labels=LABELS)[0].scores != plain_scores
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=r"expected an adapter with an adapter_config\.json"):
        open_native(LoadOptions(str(folders("qwen2_5_vl")), device="cpu", peft=str(tmp_path / "none")))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "internvl", "idefics3"])
def test_solved_examples_are_earlier_turns(load: Callable[..., ChatModel], kind: str) -> None:
    model = load(kind)
    asked = FewShotPrompt(
        (FewShotExample("What is it?", 1, "benign"), FewShotExample("And this?", 1, "no")), QUESTIONS[0]
    )
    (item,) = model.generate([asked], [IMAGES], max_new_tokens=4, labels=LABELS)

    def user(text: str, image: Image.Image) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}

    def said(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": [{"type": "text", "text": text}]}

    turns = [user("What is it?", IMAGES[0]), said("benign"), user("And this?", IMAGES[1]), said("no")]
    inputs = model.processor.apply_chat_template(
        [*turns, user(QUESTIONS[0], IMAGES[2])],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert item.text == plain_answer(model, dict(inputs), 4)
    for ids, score in zip(model.label_ids(asked, LABELS), item.scores or (), strict=True):
        assert score == pytest.approx(log_p(model, dict(inputs), ids, kind), abs=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "paligemma"])
def test_questions_without_an_image_are_answered_as_by_transformers(kind: str, load: Callable[..., ChatModel]) -> None:
    model = load(kind)
    # A question about an image first: nothing of it may be left.
    model.generate(QUESTIONS[:1], [IMAGES[0]], max_new_tokens=2)
    answers = model.generate(QUESTIONS, [], max_new_tokens=12, inputs=model.prepare_text(QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        turns = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        text = model.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        bos = model.tokenizer.bos_token or ""
        ids = model.tokenizer(text, return_tensors="pt", add_special_tokens=not (bos and text.startswith(bos)))
        if hasattr(model.model.model, "rope_deltas"):
            model.model.model.rope_deltas = None
        inputs = {name: ids[name] for name in ("input_ids", "attention_mask")}
        assert not model.image_positions(inputs).any()
        assert answer.text == plain_answer(model, inputs, 12)


def test_a_model_without_chat_template_takes_no_question_without_an_image(load: Callable[..., ChatModel]) -> None:
    with pytest.raises(ModelError, match="PaliGemma takes no question without an image"):
        load("paligemma").prepare_text(QUESTIONS)
