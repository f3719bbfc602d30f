"""Logits of a loaded MedM-VL equal a forward pass written out with torch operations on the authors' tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support.tiny_medm_vl import llm_config, vision_config, write_checkpoint
from torch import Tensor

from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions


def read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as handle:
            tensors.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
    return tensors


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(len(x), n, -1).transpose(0, 1)


def siglip_states(w: dict[str, Tensor], c: dict[str, Any], pixels: Tensor) -> list[Tensor]:
    """All hidden states of the tower for one image (3, H, W), each (P, d), none through the final layer norm."""
    tower, patch = "encoder_image.encoder.vision_model", c["patch_size"]
    kernel = w[f"{tower}.embeddings.patch_embedding.weight"]
    bias = w[f"{tower}.embeddings.patch_embedding.bias"]
    patches = pixels.unfold(1, patch, patch).unfold(2, patch, patch)  # (3, rows, columns, p, p)
    x = torch.einsum("cijpq,dcpq->ijd", patches, kernel).flatten(0, 1) + bias
    x = x + w[f"{tower}.embeddings.position_embedding.weight"]
    states, n = [x], c["num_attention_heads"]
    for i in range(c["num_hidden_layers"]):
        name = f"{tower}.encoder.layers.{i}"
        y = layer_norm(w, f"{name}.layer_norm1", x)
        q, k, v = (heads(linear(w, f"{name}.self_attn.{part}_proj", y), n) for part in "qkv")
        attention = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(w, f"{name}.self_attn.out_proj", attention.transpose(0, 1).flatten(1))
        y = linear(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.layer_norm2", x))
        x = x + linear(w, f"{name}.mlp.fc2", F.gelu(y, approximate="tanh"))
        states.append(x)
    return states


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of (heads, L, d), the halves of d rotated against each other (Su et al., 2021)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] / theta ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def qwen_logits(w: dict[str, Tensor], c: dict[str, Any], x: Tensor) -> Tensor:
    """Logits (L, V) of one sequence of embeddings (L, D)."""
    n, groups = c["num_attention_heads"], c["num_attention_heads"] // c["num_key_value_heads"]
    causal = torch.ones(len(x), len(x)).tril().log()
    for i in range(c["num_hidden_layers"]):
        name = f"llm.model.layers.{i}"
        y = rms_norm(w, f"{name}.input_layernorm", x)
        q = rotate(heads(linear(w, f"{name}.self_attn.q_proj", y), n), c["rope_theta"])
        k = rotate(heads(linear(w, f"{name}.self_attn.k_proj", y), n // groups), c["rope_theta"])
        v = heads(linear(w, f"{name}.self_attn.v_proj", y), n // groups)
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        attention = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + causal).softmax(-1) @ v
        x = x + linear(w, f"{name}.self_attn.o_proj", attention.transpose(0, 1).flatten(1))
        y = rms_norm(w, f"{name}.post_attention_layernorm", x)
        gate = linear(w, f"{name}.mlp.gate_proj", y)
        x = x + linear(w, f"{name}.mlp.down_proj", gate * gate.sigmoid() * linear(w, f"{name}.mlp.up_proj", y))
    head = "llm.model.embed_tokens" if c["tie_word_embeddings"] else "llm.lm_head"
    return rms_norm(w, "llm.model.norm", x) @ w[f"{head}.weight"].T


def reference_logits(
    folder: Path, tied: bool, before: list[int], after: list[int], pixels: Tensor, layer: int, skip: int
) -> Tensor:
    w = read_tensors(folder)
    x = siglip_states(w, vision_config(), pixels)[layer][skip:]
    x = linear(w, "connector_image.connector.2", F.gelu(linear(w, "connector_image.connector.0", x)))
    embed = w["llm.model.embed_tokens.weight"]
    return qwen_logits(w, llm_config(tied=tied), torch.cat([embed[before], x, embed[after]]))


@pytest.mark.parametrize("form", ["april", "october"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_equal_the_reference(tmp_path: Path, make_image: Any, form: str, tied: bool, shards: int) -> None:
    write_checkpoint(tmp_path, form=form, tied=tied, shards=shards)
    check(tmp_path, make_image, tied=tied)


@pytest.mark.parametrize(("layer", "feature", "skip"), [(-2, "cls_patch", 0), (1, "cls_patch", 0), (-1, "patch", 1)])
def test_the_connector_takes_the_state_that_the_config_names(
    tmp_path: Path, make_image: Any, layer: int, feature: str, skip: int
) -> None:
    write_checkpoint(tmp_path, select_layer=layer, select_feature=feature)
    check(tmp_path, make_image, layer=layer, skip=skip)


def check(folder: Path, make_image: Any, *, tied: bool = True, layer: int = -1, skip: int = 0) -> None:
    loaded = load(LoadOptions(str(folder), device="cpu", dtype="float32", attn_implementation="eager"))
    inputs = loaded.prepare(["Which category?"], [make_image(0)])
    logits = loaded.model(**inputs).logits[0]
    # The prompt is tokenised here once more, in the authors' way: the text on either side of the image apart.
    system, rest = loaded.render("Which category?").split("<image>")
    before, after = (loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (system, rest))
    expected = reference_logits(folder, tied, before, after, inputs["pixel_values"][0], layer, skip)
    assert len(expected) == len(before) + 16 - skip + len(after)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_image_reaches_the_logits(tiny: Any, make_image: Any) -> None:
    result, other = (tiny.model(**tiny.prepare(["?"], [make_image(seed)])).logits[0, -1] for seed in (0, 1))
    assert (result - other).abs().max() > 0.1


def test_every_parameter_is_the_file_s(tiny: Any, tiny_folder: Path) -> None:
    tensors = read_tensors(tiny_folder)
    total = sum(t.numel() for name, t in tensors.items() if ".vision_model.head." not in name)
    assert sum(p.numel() for p in tiny.model.parameters()) == total
    assert not any(t.is_meta or t.requires_grad for t in tiny.model.parameters())
    assert not any(t.is_meta for t in tiny.model.buffers())
    assert tiny.model.lm_head.weight is tiny.model.model.language_model.embed_tokens.weight
    assert not tiny.model.training


def test_half_precision_keeps_rotary_frequencies_exact(tiny: Any, tiny_folder: Path, make_image: Any) -> None:
    half = load(LoadOptions(str(tiny_folder), device="cpu", dtype="bf16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16} == {half.dtype}
    rotary = half.model.model.language_model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    torch.testing.assert_close(rotary, tiny.model.model.language_model.rotary_emb.inv_freq, rtol=0, atol=0)
    inputs = half.prepare(["Which?"], [make_image(0)])
    assert inputs["pixel_values"].dtype == torch.bfloat16
    exact = tiny.model(**tiny.prepare(["Which?"], [make_image(0)])).logits[0, -1]
    torch.testing.assert_close(half.model(**inputs).logits[0, -1].float(), exact, atol=0.5, rtol=0.1)


def test_weights_in_memory_do_not_hang_on_the_file(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    loaded = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32"))
    value = loaded.model.lm_head.weight[0].clone()
    loaded.model.model.vision_tower.post_layernorm.weight.zero_()
    assert (checkpoint / "model.safetensors").read_bytes() == before
    (checkpoint / "model.safetensors").write_bytes(bytes(len(before)))
    assert torch.equal(loaded.model.lm_head.weight[0], value)


def test_published_shapes_build_the_released_model(tmp_path: Path) -> None:
    """The released 2D model by its public size: 3.09 B parameters in the LLM, 92.9 M in the tower without its head."""
    from support.tiny_medm_vl import october_config
    from transformers import Qwen2ForCausalLM, SiglipVisionModel

    from medmllm_plugins.models.formats.medm_vl_config import read_config

    raw = october_config("Qwen/Qwen2.5-3B-Instruct", "google/siglip-base-patch16-256-multilingual")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    with torch.device("meta"):
        llm, tower = Qwen2ForCausalLM(config.llm), SiglipVisionModel(config.vision)
    assert llm.num_parameters() == 3_085_938_688
    # 12 blocks of 12 d^2 + 13 d, patch embedding, 256 positions, final norm; d = 768.
    d = 768
    assert tower.num_parameters() == 12 * (12 * d * d + 13 * d) + d * (3 * 256 + 1) + 256 * d + 2 * d
    assert config.image_tokens == 256
    assert config.max_length == 2048
