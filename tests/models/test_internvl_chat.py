"""InternVL from its authors' format, against their arithmetic written out."""

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
from torch import Tensor
from torch.nn import functional as F

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.formats import internvl_chat
from medmllm_plugins.models.native import AUTHORS_FORMATS, open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.testing.tiny_families import write_family

LABELS = ["benign", "malignant tumour", "benign tumour", "no"]
QUESTIONS = ["What is it?", "Classify this breast ultrasound image: benign, malignant.", "Is it benign? " * 3]
SIZES = [(60, 40), (64, 64), (30, 95)]
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for seed, (width, height) in enumerate(SIZES)
]


def options(folder: Path, **more: Any) -> LoadOptions:
    return LoadOptions(str(folder), device="cpu", **more)


def tiles(image: Image.Image, side: int, most: int) -> list[Image.Image]:
    """Tiles of the grid whose aspect ratio is closest, then the whole image in one tile."""
    grids = sorted(
        {(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most}, key=lambda g: g[0] * g[1]
    )
    best, least = (1, 1), float("inf")
    for grid in grids:
        off = abs(image.width / image.height - grid[0] / grid[1])
        larger = image.width * image.height > 0.5 * side * side * grid[0] * grid[1]
        if off < least or (off == least and larger):
            best, least = grid, off
    columns, rows = best
    whole = image.resize((side * columns, side * rows), Image.Resampling.BICUBIC)
    corners = [(side * column, side * row) for row in range(rows) for column in range(columns)]
    cut = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
    return cut if len(cut) == 1 else [*cut, image.resize((side, side), Image.Resampling.BICUBIC)]


def normalised(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return ((pixels - torch.tensor(internvl_chat.MEAN)) / torch.tensor(internvl_chat.STD)).permute(2, 0, 1)


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    if f"{name}.bias" in state:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * state[f"{name}.weight"]


def tower(state: dict[str, Tensor], pixels: Tensor, heads: int = 4) -> Tensor:
    """InternViT: (N, 3, H, W) to (N, 1 + patches, D)."""
    at = "vision_model.embeddings."
    patches = F.conv2d(pixels, state[f"{at}patch_embedding.weight"], state[f"{at}patch_embedding.bias"], stride=8)
    x = torch.cat([state[f"{at}class_embedding"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{at}position_embedding"]
    for layer in range(3):
        at = f"vision_model.encoder.layers.{layer}."
        stacked = F.linear(norm(x, state, f"{at}norm1"), state[f"{at}attn.qkv.weight"], state.get(f"{at}attn.qkv.bias"))
        q, k, v = stacked.chunk(3, dim=-1)
        if f"{at}attn.q_norm.weight" in state:
            q, k = norm(q, state, f"{at}attn.q_norm"), norm(k, state, f"{at}attn.k_norm")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, state[f"{at}attn.proj.weight"], state[f"{at}attn.proj.bias"]) * state[f"{at}ls1"]
        inner = F.gelu(F.linear(norm(x, state, f"{at}norm2"), state[f"{at}mlp.fc1.weight"], state[f"{at}mlp.fc1.bias"]))
        x = x + F.linear(inner, state[f"{at}mlp.fc2.weight"], state[f"{at}mlp.fc2.bias"]) * state[f"{at}ls2"]
    return x


def tokens(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Image tokens, (N, patches / 4, D): blocks of 2 x 2 patches side by side, then the MLP."""
    grid = tower(state, pixels)[:, 1:].unflatten(1, (4, 4))
    # Of a block, the rows vary slower than the columns.
    blocks = grid.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
    x = F.layer_norm(blocks, blocks.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
    x = F.gelu(F.linear(x, state["mlp1.1.weight"], state["mlp1.1.bias"]))
    return F.linear(x, state["mlp1.3.weight"], state["mlp1.3.bias"])


def reference_llm(folder: Path) -> Any:
    state, raw = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in raw["llm_config"].items() if key not in ("architectures", "model_type")}
    name = raw["llm_config"]["architectures"][0]
    llm = getattr(hf, name)(getattr(hf, name.replace("ForCausalLM", "Config"))(**text))
    llm.load_state_dict({k.removeprefix("language_model."): v for k, v in state.items() if k.startswith("language_")})
    return llm.eval()


@pytest.mark.parametrize("llm", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("kind", ["300m", "6b"])
def test_scores_equal_the_authors_arithmetic(tmp_path: Path, llm: str, kind: str) -> None:
    folder = tiny_authors.internvl_chat(tmp_path, llm, tower=kind)
    loaded = internvl_chat.load(options(folder))
    result = loaded.generate(QUESTIONS, IMAGES, max_new_tokens=4, labels=LABELS)
    state, model = load_file(folder / "model.safetensors"), reference_llm(folder)
    words = hf.AutoTokenizer.from_pretrained(str(folder))
    embed = model.get_input_embeddings()
    for question, image, answer in zip(QUESTIONS, IMAGES, result, strict=True):
        with torch.no_grad():
            pixels = torch.stack([normalised(tile) for tile in tiles(image, 32, 4)])
            seen = tokens(state, pixels).flatten(0, 1)
        slots = "<IMG_CONTEXT>" * len(seen)
        prompt = (
            "<|im_start|>system\nYou read images.<|im_end|>\n<|im_start|>user\n"
            f"<img>{slots}</img>\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        start = words(prompt)["input_ids"]
        for label, score in zip(LABELS, answer.scores, strict=True):
            ids = words(prompt + label)["input_ids"]
            assert ids[: len(start)] == start
            with torch.no_grad():
                embeds = embed(torch.tensor([ids]))
                embeds[0, [i for i, token in enumerate(ids) if words.decode([token]) == "<IMG_CONTEXT>"]] = seen
                logits = model(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[at - 1, ids[at]]) for at in range(len(start), len(ids)))
            assert score == pytest.approx(expected, abs=1e-3)


def test_a_checkpoint_of_transformers_format_is_taken_too(tmp_path: Path) -> None:
    write_family("internvl", tmp_path)
    loaded = internvl_chat.load(options(tmp_path))
    assert loaded.generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=2, labels=LABELS)[0].scores is not None


def test_one_tile_where_the_config_asks_for_it(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path, dynamic_image_size=False)
    loaded = internvl_chat.load(options(folder))
    assert loaded.prepare(QUESTIONS[:1], [IMAGES[2]])["pixel_values"].shape[0] == 1
    several = internvl_chat.load(options(tiny_authors.internvl_chat(tmp_path / "tiles")))
    assert several.prepare(QUESTIONS[:1], [IMAGES[2]])["pixel_values"].shape[0] == 4  # three tiles and the whole


def test_a_system_prompt_of_the_user_replaces_the_models_own(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path)
    prompt = internvl_chat.load(options(folder, system="Be brief.")).render("What is it?")
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?")
    assert "You read images" not in prompt


def test_a_template_without_line_breaks_between_turns(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path, template="other")
    prompt = internvl_chat.load(options(folder)).render("What is it?")
    assert prompt == (
        "<|im_start|>system\nAnother model.<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_tied_embeddings(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path, tie_word_embeddings=True)
    model = internvl_chat.load(options(folder)).model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_the_layers_of_every_stage_are_there(tmp_path: Path) -> None:
    loaded = internvl_chat.load(options(tiny_authors.internvl_chat(tmp_path)))
    names = [layer.name for layer in layers_of(loaded)]
    assert "connector" in names and sum(name.startswith("vision") for name in names) == 4  # with the norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "`ps_version` to be v2"),
        ({"pad2square": True}, "`pad2square` to be False"),
        ({"use_thumbnail": False}, "`use_thumbnail`"),
        ({"template": "nobody"}, "template 'nobody'"),
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "InternLM2"),
        ({"vision_config": None}, "`vision_config`"),
        ({"force_image_size": "large"}, "`force_image_size`"),
        ({"model_type": "qwen2"}, "`model_type` of internvl_chat"),
    ],
)
def test_what_is_not_served_is_an_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tiny_authors.internvl_chat(tmp_path, **change)
    with pytest.raises(ModelError, match=message):
        internvl_chat.load(options(folder))


@pytest.mark.parametrize("text", [None, "def (", "\0", "x = 1\n", "Conversation(name='tiny', roles=3)\n"])
def test_conversations_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    folder = tiny_authors.internvl_chat(tmp_path)
    if text is None:
        (folder / "conversation.py").unlink()
    else:
        (folder / "conversation.py").write_text(text)
    with pytest.raises(ModelError, match=r"conversation\.py"):
        internvl_chat.load(options(folder))


def test_options_that_the_format_does_not_take(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path)
    with pytest.raises(OptionError, match="trust_remote_code"):
        internvl_chat.load(options(folder, trust_remote_code=str(folder)))


def test_the_loader_of_transformers_formats_names_the_model(tmp_path: Path) -> None:
    folder = tiny_authors.internvl_chat(tmp_path)
    with pytest.raises(ModelError, match="Use --model internvl_chat, which reads it without running its code"):
        open_native(options(folder))
    assert set(AUTHORS_FORMATS.values()) <= set(get_manager().models())
