"""Tiny random checkpoints in their authors' own formats: the first LLaVA's, Hulu-Med's, Citrus-V's and InternVL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file

from medmllm_plugins.testing.tiny_checkpoints import SIGLIP, TEXT, randomise, tokenizer
from medmllm_plugins.testing.tiny_families import FAMILIES

CLIP = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32, "hidden_act": "quick_gelu"}


def old_llava(folder: Path, kind: str = "llava_qwen2", **changes: Any) -> Path:
    """HuatuoGPT-Vision (``llava_qwen2``) or LLaVA-Med (``llava_mistral``): an LLM's config with ``mm_*`` keys."""
    words = tokenizer([], **{})
    text = {**TEXT, "vocab_size": 400 if kind == "llava_qwen2" else len(words)}
    llm = {"llava_qwen2": hf.Qwen2ForCausalLM, "llava_mistral": hf.MistralForCausalLM}[kind](
        {"llava_qwen2": hf.Qwen2Config, "llava_mistral": hf.MistralConfig}[kind](**text)
    )
    tower = hf.CLIPVisionModel(hf.CLIPVisionConfig(**{k: v for k, v in CLIP.items() if k != "model_type"}))
    projector = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    for seed, part in enumerate((llm, tower, projector)):
        randomise(part, seed)
    state = {name: value for name, value in llm.state_dict().items() if "inv_freq" not in name}
    for name, value in tower.state_dict().items():
        inner = name.removeprefix("vision_model.")
        state[f"model.vision_tower.vision_tower.vision_model.{inner}"] = value
    state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None].float()
    state |= {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "vit").mkdir(exist_ok=True)
    (folder / "vit" / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": CLIP}))
    config = {
        **text,
        "model_type": kind,
        "architectures": ["LlavaForCausalLM"],
        "mm_vision_tower": "./vit",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "image_aspect_ratio": "pad",
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words.save_pretrained(folder)
    return folder


def citrus_v(folder: Path, *, nested: bool = True, older: bool = False) -> Path:
    """Citrus-V: a Qwen2.5-VL named ``mllm``, beside a SAM 2 and a projector.

    Args:
        folder: where it is written.
        nested: whether the LLM's settings are an object of their own in the config, or stand at its top.
        older: whether tensors have the names that transformers had for Qwen2.5-VL before it named its LLM.
    """
    model, processor = FAMILIES["qwen2_5_vl"]()
    randomise(model)
    processor.save_pretrained(folder)
    state = {}
    for name, value in model.state_dict().items():
        if older:
            name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        state[f"mllm.{name}"] = value.contiguous().clone()
    state["grounding_encoder.sam2_model.image_encoder.trunk.patch_embed.proj.weight"] = torch.zeros(4, 3, 7, 7)
    state["grounding_encoder.sam2_model.no_mem_embed"] = torch.zeros(1, 1, 8)
    state |= {f"seg_projector.{layer}.weight": torch.zeros(32, 32) for layer in (0, 2)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    text, vision = config["text_config"], config["vision_config"]
    raw = {
        **text,
        "architectures": ["CitrusV"],
        "model_type": "citrus_v",
        "vision_config": vision,
        **({"text_config": text} if nested else {}),
        **{key: config[key] for key in config if key.endswith("_token_id")},
        "seg_token_idx": 99,
        "grounding_encoder_config": {"apply_postprocessing": False, "cfg_path": "/somewhere/sam2_hiera_l.yaml"},
        "loss_dice_config": {"use_sigmoid": True},
        "tie_word_embeddings": False,
    }
    if not nested:  # as the authors' own file has it
        scaling = text["rope_parameters"]
        raw |= {"rope_scaling": {"type": "mrope", "mrope_section": scaling["mrope_section"]}}
        raw |= {"rope_theta": scaling["rope_theta"]}
        del raw["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def hulu_med(folder: Path, kind: str = "hulumed_qwen2", *, nested: bool = True, wrapped: bool = True) -> Path:
    """Hulu-Med: an LLM's config with the tower's beside it."""
    words = tokenizer(["<image>"])
    text = dict(TEXT)
    if kind == "hulumed_qwen3":
        text["head_dim"] = 8
    llm_kind = {
        "hulumed_qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "hulumed_qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
    }
    llm = llm_kind[kind][1](llm_kind[kind][0](**text))
    vision = {key: value for key, value in SIGLIP.items() if key != "image_size"}
    tower = hf.VideoLlama3VisionModel(hf.VideoLlama3VisionConfig(**vision))
    projector = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    for seed, part in enumerate((llm, tower, projector)):
        randomise(part, seed)
    state = {name: value for name, value in llm.state_dict().items() if "inv_freq" not in name}
    prefix = "model.vision_encoder.vision_encoder." if wrapped else "model.vision_encoder."
    state |= {f"{prefix}{name}": value for name, value in tower.state_dict().items() if "inv_freq" not in name}
    state |= {f"model.mm_projector.readout.{name}": value for name, value in projector.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    config = {
        **text,
        "model_type": kind,
        "auto_map": {"AutoModelForCausalLM": "modeling_hulumed.HulumedForCausalLM"},
        "mm_projector_type": "mlp2x_gelu",
        "image_token_index": words.convert_tokens_to_ids("<image>"),
    }
    if nested:
        config["vision_encoder_config"] = {**vision, "model_type": "hulumed_vision_encoder"}
    else:
        (folder / "tower").mkdir()
        (folder / "tower" / "config.json").write_text(json.dumps(vision))
        config["vision_encoder"] = "./tower"
    (folder / "config.json").write_text(json.dumps(config))
    stated = {"patch_size": 8, "min_tokens": 4, "max_tokens": 20, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    words.save_pretrained(folder)
    return folder


CONVERSATIONS = """
import dataclasses
from enum import IntEnum, auto


def register_conv_template(template):
    raise RuntimeError('this file is read, not run')


register_conv_template(
    Conversation(
        name='other',
        system_template='<|im_start|>system\\n{system_message}',
        system_message='Another model.',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>',
    )
)
register_conv_template(
    Conversation(
        name='tiny',
        system_template='<|im_start|>system\\n{system_message}',
        system_message='You read images.',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>\\n',
    )
)
"""
INTERN_VIT = {
    "model_type": "intern_vit_6b",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
    "drop_path_rate": 0.1,
    "use_flash_attn": True,
}


def internvl_chat(folder: Path, llm: str = "Qwen2ForCausalLM", *, tower: str = "300m", **changes: Any) -> Path:
    """InternVL in its authors' format.

    ``tower`` is ``"300m"`` (layer norms, a bias on queries, keys and values) or ``"6b"`` (root-mean-square norms, on
    queries and keys too).
    """
    vision = dict(INTERN_VIT)
    if tower == "6b":
        vision |= {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}
    words = tokenizer(["<img>", "</img>", "<IMG_CONTEXT>"])
    text = {**TEXT, "tie_word_embeddings": changes.pop("tie_word_embeddings", False)}
    if llm == "Qwen3ForCausalLM":
        text["head_dim"] = 8
    model = getattr(hf, llm)(getattr(hf, llm.replace("ForCausalLM", "Config"))(**text))
    mlp = torch.nn.Sequential(
        torch.nn.LayerNorm(128), torch.nn.Linear(128, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
    )
    for seed, part in enumerate((model, mlp)):
        randomise(part, seed)
    state = {f"language_model.{name}": value for name, value in model.state_dict().items() if "inv_freq" not in name}
    state |= {f"mlp1.{name}": value for name, value in mlp.state_dict().items()}
    state |= _intern_vit(vision)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    config = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "vision_config": vision,
        "llm_config": {**text, "architectures": [llm], "model_type": llm.removesuffix("ForCausalLM").lower()},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "force_image_size": 32,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "tiny",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "conversation.py").write_text(CONVERSATIONS)
    words.save_pretrained(folder)
    return folder


def _intern_vit(vision: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights of an InternViT, by its authors' names."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    cells = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, cells + 1, width),
        "embeddings.patch_embedding.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        "embeddings.patch_embedding.bias": (width,),
    }
    for layer in range(vision["num_hidden_layers"]):
        block = f"encoder.layers.{layer}."
        shapes |= {f"{block}ls1": (width,), f"{block}ls2": (width,)}
        shapes |= {f"{block}attn.qkv.weight": (3 * width, width), f"{block}attn.proj.weight": (width, width)}
        shapes |= {f"{block}attn.proj.bias": (width,), f"{block}mlp.fc1.weight": (inner, width)}
        shapes |= {f"{block}mlp.fc1.bias": (inner,), f"{block}mlp.fc2.weight": (width, inner)}
        shapes |= {f"{block}mlp.fc2.bias": (width,), f"{block}norm1.weight": (width,), f"{block}norm2.weight": (width,)}
        if vision["norm_type"] == "layer_norm":
            shapes |= {f"{block}norm1.bias": (width,), f"{block}norm2.bias": (width,)}
        if vision["qkv_bias"]:
            shapes[f"{block}attn.qkv.bias"] = (3 * width,)
        if vision["qk_normalization"]:
            shapes |= {f"{block}attn.q_norm.weight": (width,), f"{block}attn.k_norm.weight": (width,)}
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        fan = shape[-1] if len(shape) == 2 else shape[-1] * 48 if len(shape) == 4 else 4
        state[f"vision_model.{name}"] = value * fan**-0.5 + (1.0 if "norm" in name and "weight" in name else 0.0)
    return state
