"""Tiny random checkpoints in their authors' own formats: the first LLaVA's, and Hulu-Med's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from support.tiny_families import SIGLIP, TEXT, randomise, tokenizer

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
