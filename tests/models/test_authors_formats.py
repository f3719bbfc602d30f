"""HuatuoGPT-Vision, LLaVA-Med and Hulu-Med from their authors' formats, against the authors' arithmetic written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from support import tiny_authors
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.formats import hulu_med, original_llava
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.testing.tiny_families import write_family

LABELS = ["benign", "malignant tumour", "benign tumour", "no"]
QUESTIONS = ["What is it?", "Classify this breast ultrasound image: benign, malignant.", "Is it benign? " * 3]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 60, 40), picture(1, 64, 64), picture(2, 50, 90)]


def options(folder: Path, **more: Any) -> LoadOptions:
    return LoadOptions(str(folder), device="cpu", **more)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def projector(state: dict[str, Tensor], prefix: str) -> nn.Module:
    result = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    result.load_state_dict(part(state, prefix))
    return result


@torch.no_grad()
def whole(llm: Any, before: list[int], features: Tensor, behind: list[int], label: list[int]) -> float:
    """Log-probability of a label behind a prompt whose image's place is taken by its features."""
    embed = llm.get_input_embeddings()
    ids = torch.tensor([*behind, *label])
    embeds = torch.cat([embed(torch.tensor(before, dtype=torch.long)), features, embed(ids)])[None]
    logits = llm(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
    at = len(before) + len(features) + len(behind) - 1
    return float(sum(logits[at + place, token] for place, token in enumerate(label)))


@pytest.mark.parametrize(
    ("kind", "loader", "config", "model", "before", "behind"),
    [
        (
            "llava_qwen2",
            original_llava.huatuogpt_vision,
            hf.Qwen2Config,
            hf.Qwen2ForCausalLM,
            "<|user|>\n",
            "\n{}\n<|assistant|>\n",
        ),
        ("llava_mistral", original_llava.llava_med, hf.MistralConfig, hf.MistralForCausalLM, "[INST] ", "\n{} [/INST]"),
    ],
    ids=["huatuogpt_vision", "llava_med"],
)
def test_the_first_llava_format(
    tmp_path: Path, kind: str, loader: Any, config: Any, model: Any, before: str, behind: str
) -> None:
    folder = tiny_authors.old_llava(tmp_path, kind)
    loaded = loader(options(folder))
    result = loaded.generate(QUESTIONS, IMAGES, max_new_tokens=4, labels=LABELS)

    state, raw = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    llm = model(
        config(**{key: value for key, value in raw.items() if not key.startswith("mm_") and key != "model_type"})
    )
    llm.load_state_dict({k: v for k, v in state.items() if "vision" not in k and "projector" not in k})
    tower = hf.CLIPVisionModel(hf.CLIPVisionConfig(**tiny_authors.CLIP))
    prefix = "model.vision_tower.vision_tower.vision_model."
    named = {name for name in tower.state_dict()}
    inner = {k: v for k, v in part(state, prefix).items() if "position_ids" not in k}
    tower.load_state_dict({(f"vision_model.{k}" if f"vision_model.{k}" in named else k): v for k, v in inner.items()})
    mlp = projector(state, "model.mm_projector.")
    words = hf.AutoTokenizer.from_pretrained(str(folder))
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for question, image, answer in zip(QUESTIONS, IMAGES, result, strict=True):
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        with torch.no_grad():
            pixels = processor(images=square, return_tensors="pt")["pixel_values"]
            features = mlp(tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:])
        prompt = words(behind.format(question))["input_ids"]
        for label, score in zip(LABELS, answer.scores, strict=True):
            blank = "" if behind.endswith("\n") else " "
            joint = words(behind.format(question) + blank + label)["input_ids"]
            ids = joint[len(prompt) :]
            assert score == pytest.approx(whole(llm, words(before)["input_ids"], features, prompt, ids), abs=1e-3)
    for question, image, answer in zip(QUESTIONS, IMAGES, result, strict=True):
        (alone,) = loaded.generate([question], [image], max_new_tokens=4, labels=LABELS)
        assert alone.text == answer.text and alone.scores == pytest.approx(answer.scores, abs=1e-4)
    in_words = loaded.generate(QUESTIONS, [], max_new_tokens=4, inputs=loaded.prepare_text(QUESTIONS))
    for question, answer in zip(QUESTIONS, in_words, strict=True):
        prompt = torch.tensor([words(before + behind.removeprefix("\n").format(question))["input_ids"]])
        out = llm.generate(prompt, do_sample=False, max_new_tokens=4, eos_token_id=loaded.eos_token_ids[0])
        assert answer.text == words.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["hulumed_qwen2", "hulumed_qwen3"])
@pytest.mark.parametrize(("nested", "wrapped"), [(True, True), (False, False)])
def test_hulu_med(tmp_path: Path, kind: str, nested: bool, wrapped: bool) -> None:
    folder = tiny_authors.hulu_med(tmp_path, kind, nested=nested, wrapped=wrapped)
    loaded = hulu_med.load(options(folder))
    result = loaded.generate(QUESTIONS, IMAGES, max_new_tokens=4, labels=LABELS)

    state, raw = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    names = {
        "hulumed_qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "hulumed_qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
    }
    beside = ("model_type", "auto_map", "vision_encoder", "vision_encoder_config")
    llm = names[kind][1](names[kind][0](**{key: value for key, value in raw.items() if key not in beside}))
    llm.load_state_dict({k: v for k, v in state.items() if "vision" not in k and "projector" not in k})
    vision = {key: value for key, value in tiny_authors.SIGLIP.items() if key != "image_size"}
    tower = hf.VideoLlama3VisionModel(hf.VideoLlama3VisionConfig(**vision))
    tower.load_state_dict(part(state, "model.vision_encoder.vision_encoder." if wrapped else "model.vision_encoder."))
    mlp = projector(state, "model.mm_projector.readout.")
    words = hf.AutoTokenizer.from_pretrained(str(folder))
    processor = hf.VideoLlama3ImageProcessorPil(
        patch_size=8, merge_size=1, min_pixels=4 * 64, max_pixels=20 * 64, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for question, image, answer in zip(QUESTIONS, IMAGES, result, strict=True):
        pixels = processor(images=image, return_tensors="pt")
        with torch.no_grad():
            features = mlp(
                tower(
                    pixel_values=pixels["pixel_values"],
                    grid_thw=pixels["image_grid_thw"],
                    merge_sizes=pixels["image_merge_sizes"],
                ).last_hidden_state
            )
        before = words("<|im_start|>user\n")["input_ids"]
        text = f"\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = words(text)["input_ids"]
        for label, score in zip(LABELS, answer.scores or (), strict=True):
            ids = words(text + label)["input_ids"][len(prompt) :]
            assert score == pytest.approx(whole(llm, before, features, prompt, ids), abs=1e-3)


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = tiny_authors.old_llava(tmp_path / "a", model_type="internvl")
    with pytest.raises(ModelError, match=r"first LLaVA format.*got 'internvl'.*--model medmllm_hf"):
        original_llava.huatuogpt_vision(options(folder))
    with pytest.raises(ModelError, match=r"expected a Hulu-Med checkpoint.*got 'qwen2_5_vl'"):
        tiny_authors.hulu_med(tmp_path / "b")
        path = tmp_path / "b" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "qwen2_5_vl"}))
        hulu_med.load(options(tmp_path / "b"))
    folder = tiny_authors.old_llava(tmp_path / "c", mm_projector_type="linear")
    with pytest.raises(ModelError, match="expected `mm_projector_type` mlp2x_gelu, got 'linear'"):
        original_llava.llava_med(options(folder))
    folder = tiny_authors.old_llava(tmp_path / "d", mm_vision_select_feature="cls")
    with pytest.raises(ModelError, match="patch or cls_patch, got 'cls'"):
        original_llava.llava_med(options(folder))


def test_huatuogpt_vision_of_qwen2_5_vl_is_loaded_as_such(tmp_path: Path) -> None:
    folder = write_family("qwen2_5_vl", tmp_path)
    specs = get_manager().models()
    model, plain = (load_model(specs[name], options(folder)) for name in ("huatuogpt_vision", "medmllm_hf"))
    question, image = [QUESTIONS[0]], [[IMAGES[0]]]
    answers = [each.generate(question, image, max_new_tokens=3, labels=LABELS) for each in (model, plain)]
    assert answers[0] == answers[1] and model.family.model_type == "qwen2_5_vl" and model.shows == "images"
    assert specs["huatuogpt_vision"].base_of("7b-qwen2.5vl") == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_a_tower_that_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tiny_authors.old_llava(tmp_path)
    path = folder / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "vision_tower" not in name}, path)
    with pytest.raises(ModelError, match=r"missing from the checkpoint: .*vision_tower"):
        original_llava.huatuogpt_vision(options(folder))


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = tiny_authors.hulu_med(tmp_path / "a")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "image_token_index": 7}))
    with pytest.raises(ModelError, match=r"the token <image> with the number that config\.json states \(7\)"):
        hulu_med.load(options(folder))
    folder = tiny_authors.old_llava(tmp_path / "b", vocab_size=20)
    with pytest.raises(ModelError, match="it belongs to another model"):
        original_llava.huatuogpt_vision(options(folder))


def test_options_that_do_not_go_with_these_formats(tmp_path: Path) -> None:
    folder = tiny_authors.old_llava(tmp_path)
    with pytest.raises(OptionError, match=r"Got `load_in=4bit`, which models that are filled"):
        original_llava.huatuogpt_vision(options(folder, load_in="4bit"))
    with pytest.raises(OptionError, match=r"Got `system=Be brief`"):
        original_llava.huatuogpt_vision(options(folder, system="Be brief"))
    with pytest.raises(ModelError, match="one image a question"):
        original_llava.huatuogpt_vision(options(folder)).generate(QUESTIONS[:1], [IMAGES[:2]], max_new_tokens=0)


@pytest.mark.parametrize("how", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_a_model_spread_over_devices_answers_the_same(tmp_path: Path, how: str) -> None:
    folder = tiny_authors.hulu_med(tmp_path)
    whole, spread = hulu_med.load(options(folder)), hulu_med.load(options(folder, device_map=how))
    assert spread.generate(QUESTIONS, IMAGES, max_new_tokens=3, labels=LABELS) == whole.generate(
        QUESTIONS, IMAGES, max_new_tokens=3, labels=LABELS
    )
