"""Writes a tiny random MedM-VL 2D checkpoint in its authors' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from medmllm_plugins.testing.tiny_checkpoints import WORDS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
# Split rule of Qwen2's published tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, *, vocab_size: int = 320) -> None:
    """Train a byte-level BPE tokenizer of Qwen2's make on a few sentences and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    )


def llm_config(*, tied: bool = True, **changes: Any) -> dict[str, Any]:
    """Shapes of the tiny language model, as in the config.json of its base."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 330,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **changes,
    }


def vision_config(**changes: Any) -> dict[str, Any]:
    """Shapes of the tiny vision tower."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_channels": 3,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        **changes,
    }


def random_weights(
    llm: dict[str, Any], vision: dict[str, Any], *, seed: int = 0, head: bool = True
) -> dict[str, Tensor]:
    """Random tensors under the authors' names, scaled so that every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int, scale: float = 1.0) -> Tensor:
        fan_in = shape[-1] if len(shape) == 2 else 1
        return torch.randn(*shape, generator=generator) * scale / fan_in**0.5

    out: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        out[f"{name}.weight"] = rand(outputs, inputs)
        if bias:
            out[f"{name}.bias"] = rand(outputs, scale=0.3)

    def norm(name: str, width: int, *, bias: bool) -> None:
        out[f"{name}.weight"] = 1 + rand(width, scale=0.2)
        if bias:
            out[f"{name}.bias"] = rand(width, scale=0.2)

    width, channels, patch = vision["hidden_size"], vision["num_channels"], vision["patch_size"]
    tower = "encoder_image.encoder.vision_model"
    out[f"{tower}.embeddings.patch_embedding.weight"] = rand(width, channels, patch, patch, scale=0.1)
    out[f"{tower}.embeddings.patch_embedding.bias"] = rand(width, scale=0.3)
    out[f"{tower}.embeddings.position_embedding.weight"] = torch.randn(
        (vision["image_size"] // patch) ** 2, width, generator=generator
    )
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", width, width)
        norm(f"{layer}.layer_norm1", width, bias=True)
        norm(f"{layer}.layer_norm2", width, bias=True)
        linear(f"{layer}.mlp.fc1", width, vision["intermediate_size"])
        linear(f"{layer}.mlp.fc2", vision["intermediate_size"], width)
    norm(f"{tower}.post_layernorm", width, bias=True)
    if head:
        out[f"{tower}.head.probe"] = torch.randn(1, 1, width, generator=generator)
        out[f"{tower}.head.attention.in_proj_weight"] = rand(3 * width, width)
        out[f"{tower}.head.attention.in_proj_bias"] = rand(3 * width)
        linear(f"{tower}.head.attention.out_proj", width, width)
        norm(f"{tower}.head.layernorm", width, bias=True)
        linear(f"{tower}.head.mlp.fc1", width, vision["intermediate_size"])
        linear(f"{tower}.head.mlp.fc2", vision["intermediate_size"], width)

    hidden = llm["hidden_size"]
    linear("connector_image.connector.0", width, hidden)
    linear("connector_image.connector.2", hidden, hidden)

    out["llm.model.embed_tokens.weight"] = torch.randn(llm["vocab_size"], hidden, generator=generator)
    kv = hidden // llm["num_attention_heads"] * llm["num_key_value_heads"]
    for i in range(llm["num_hidden_layers"]):
        layer = f"llm.model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        linear(f"{layer}.self_attn.k_proj", hidden, kv)
        linear(f"{layer}.self_attn.v_proj", hidden, kv)
        linear(f"{layer}.self_attn.o_proj", hidden, hidden, bias=False)
        linear(f"{layer}.mlp.gate_proj", hidden, llm["intermediate_size"], bias=False)
        linear(f"{layer}.mlp.up_proj", hidden, llm["intermediate_size"], bias=False)
        linear(f"{layer}.mlp.down_proj", llm["intermediate_size"], hidden, bias=False)
        norm(f"{layer}.input_layernorm", hidden, bias=False)
        norm(f"{layer}.post_attention_layernorm", hidden, bias=False)
    norm("llm.model.norm", hidden, bias=False)
    if not llm["tie_word_embeddings"]:
        linear("llm.lm_head", hidden, llm["vocab_size"], bias=False)
    return out


def april_config(llm: dict[str, Any], vision: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The config.json of April 2025: nested shapes, no model_type."""
    return {
        "architectures": ["LVLMForConditionalGeneration"],
        "cache_dir_hf": None,
        "llm_type": "qwen2",
        "llm_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
        "llm_max_length": 2048,
        "llm_padding_side": "right",
        "llm_attn_implementation": "flash_attention_2",
        "tokenizer_use_fast": False,
        "encoder_image_type": "siglip",
        "encoder_image_name_or_path": "google/siglip-base-patch16-256-multilingual",
        "encoder_image_select_layer": -1,
        "encoder_image_select_feature": "cls_patch",
        "connector_image_type": "mlp",
        "connector_image_name": "mlp2x_gelu",
        "connector_image_path": None,
        "encoder_image3d_type": None,
        "llm_config": {**llm, "_name_or_path": "Qwen/Qwen2.5-3B-Instruct", "max_length": 20, "do_sample": False},
        "encoder_image_config": {**vision, "max_length": 20, "_name_or_path": ""},
        "connector_image_config": {"connector_type": "mlp", "connector_name": "mlp2x_gelu", "model_type": ""},
        "hidden_size": llm["hidden_size"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.4",
        **changes,
    }


def october_config(llm_path: str, tower_path: str, **changes: Any) -> dict[str, Any]:
    """The config.json since October 2025: the parts by name only."""
    return {
        "architectures": ["LVLMForConditionalGeneration"],
        "model_type": "lvlm",
        "hidden_size": 32,
        "lvlm_llm_type": "qwen2",
        "lvlm_llm_name_or_path": llm_path,
        "lvlm_llm_max_length": 2048,
        "lvlm_llm_padding_side": "right",
        "lvlm_llm_attn_implementation": "flash_attention_2",
        "lvlm_llm_initializer_range": 0.02,
        "lvlm_encoder_image_type": "siglip",
        "lvlm_encoder_image_name_or_path": tower_path,
        "lvlm_encoder_image_select_layer": -1,
        "lvlm_encoder_image_select_feature": "cls_patch",
        "lvlm_connector_image_type": "mlp",
        "lvlm_connector_image_name": "mlp2x_gelu",
        "lvlm_connector_image_path": None,
        "lvlm_encoder_image3d_type": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.4",
        **changes,
    }


def write_checkpoint(
    folder: Path,
    *,
    form: str = "april",
    tied: bool = True,
    shards: int = 1,
    seed: int = 0,
    select_layer: int = -1,
    select_feature: str = "cls_patch",
    max_length: int = 2048,
) -> dict[str, Tensor]:
    """Write a whole checkpoint (config, tokenizer, weights) and return its tensors.

    Args:
        folder: made if it is not there.
        form: ``"april"`` or ``"october"``, the config's format.
        tied: whether input and output embeddings are one.
        shards: number of safetensors files; more than one come with an index.
        seed: of the weights.
        select_layer: which hidden state of the tower the connector takes.
        select_feature: ``"cls_patch"`` or ``"patch"``.
        max_length: the most tokens of a sequence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    llm, vision = llm_config(tied=tied), vision_config()
    if form == "april":
        config = april_config(
            llm,
            vision,
            llm_max_length=max_length,
            encoder_image_select_layer=select_layer,
            encoder_image_select_feature=select_feature,
        )
    else:
        for name, content in (("llm", llm), ("tower", {"model_type": "siglip", "vision_config": vision})):
            (folder / "bases" / name).mkdir(parents=True, exist_ok=True)
            (folder / "bases" / name / "config.json").write_text(json.dumps(content))
        config = october_config(
            "bases/llm",
            "bases/tower",
            lvlm_llm_max_length=max_length,
            lvlm_encoder_image_select_layer=select_layer,
            lvlm_encoder_image_select_feature=select_feature,
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    weights = random_weights(llm, vision, seed=seed)
    write_weights(folder, weights, shards=shards)
    return weights


def write_weights(folder: Path, weights: dict[str, Tensor], *, shards: int = 1) -> None:
    """Write tensors as one file, or as shards with an index."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::shards]}, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(names[i::shards], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_ct_checkpoint(folder: Path, form: str = "april") -> Path:
    """The same with the connector for chest CT: learned queries that attend to the patches of all slices."""
    write_checkpoint(folder, form=form, tied=False)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(3)
    tensors["connector_image.query"] = torch.randn(16, 24, generator=generator)
    for name, value in torch.nn.MultiheadAttention(24, 8, batch_first=True).state_dict().items():
        tensors[f"connector_image.attn.{name}"] = torch.randn(value.shape, generator=generator) * 0.3
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["connector_image_type" if form == "april" else "lvlm_connector_image_type"] = "attn_pooling"
    (folder / "config.json").write_text(json.dumps(config))
    return folder
