"""Checkpoints: configs, headers and indices of weights, tokenizers, and settings of image processors and generation."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz.mutators import mutate_bytes
from fuzz.target import Files, Target
from fuzz.trees import json_mutator, safetensors_mutator
from PIL import Image
from safetensors.numpy import save
from support.tiny_authors import CLIP, TEXT
from support.tiny_medm_vl import write_tokenizer

from medmllm_plugins.attribution.attribution_store import gather_index
from medmllm_plugins.models.checkpoint import demo_folder, open_weights, read_json
from medmllm_plugins.models.families.family_registry import find_family
from medmllm_plugins.models.formats import citrus_v, hulu_med, original_llava
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.formats.medm_vl import llava_config
from medmllm_plugins.models.formats.medm_vl_config import ATTENTION_POOLING, MLP, read_config
from medmllm_plugins.models.image_inputs import siglip_processor
from medmllm_plugins.models.tokens import encode_text, label_suffixes
from medmllm_plugins.testing.tiny_checkpoints import SIGLIP


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _configs() -> dict[str, Files]:
    demo = json.loads((demo_folder() / "config.json").read_text())
    named = {
        "model_type": "lvlm",
        "lvlm_llm_type": "qwen2",
        "lvlm_llm_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
        "lvlm_llm_max_length": 2048,
        "lvlm_encoder_image_type": "siglip",
        "lvlm_encoder_image_name_or_path": "google/siglip-base-patch16-256-multilingual",
        "lvlm_encoder_image_select_layer": -1,
        "lvlm_encoder_image_select_feature": "cls_patch",
        "lvlm_connector_image_type": "mlp",
        "lvlm_connector_image_name": "mlp2x_gelu",
    }
    return {"nested": {"config.json": _json(demo)}, "named": {"config.json": _json(named)}}


def read_medm_vl(folder: Path) -> object:
    """Read a MedM-VL config as the model and as its sibling for CT do."""
    kind = ATTENTION_POOLING if ATTENTION_POOLING in (folder / "config.json").read_text(errors="replace") else MLP
    config = read_config(folder, kind)
    return config.llm_name, config.image_tokens, llava_config(config, 3).to_json_string()


def _old_llava_configs() -> dict[str, Files]:
    config = {
        **TEXT,
        "model_type": "llava_qwen2",
        "mm_vision_tower": "./vit",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
    }
    tower = {"vit/config.json": _json({"model_type": "clip", "vision_config": CLIP})}
    named = {**config, "model_type": "llava_mistral", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    return {"local": {"config.json": _json(config), **tower}, "named": {"config.json": _json(named)}}


def read_old_llava(folder: Path) -> object:
    """Read a config of the first LLaVA format."""
    return original_llava.read_config(folder).to_json_string()


def _hulu_configs() -> dict[str, Files]:
    vision = {key: value for key, value in SIGLIP.items() if key != "image_size"}
    config = {**TEXT, "model_type": "hulumed_qwen2", "vision_encoder_config": vision, "image_token_index": 5}
    return {"nested": {"config.json": _json(config)}}


def read_hulu_med(folder: Path) -> object:
    """Read a config of Hulu-Med."""
    return hulu_med.read_config(folder, 5).to_json_string()


def _citrus_configs() -> dict[str, Files]:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 2}
    common = {"model_type": "citrus_v", "vision_config": vision, "image_token_id": 5, "seg_token_idx": 9}
    top = {**TEXT, **common, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    return {"nested": {"config.json": _json({**common, "text_config": TEXT})}, "top": {"config.json": _json(top)}}


def read_citrus_v(folder: Path) -> object:
    """Read a config of Citrus-V."""
    return citrus_v.read_config(folder).to_json_string()


def _native_configs() -> dict[str, Files]:
    return {
        "plain": {"config.json": _json({"model_type": "qwen2_5_vl", "hidden_size": 32})},
        "code": {"config.json": _json({"model_type": "gemma3", "auto_map": {"AutoModel": "code.Model"}})},
    }


def read_native(folder: Path) -> object:
    """Read what is needed of a config in transformers' format before transformers reads it."""
    raw = read_json(folder / "config.json")
    return find_family(raw.get("model_type"), folder).title


def _weights() -> dict[str, Files]:
    content = save({"a.weight": np.ones((2, 3), np.float32), "b.bias": np.ones(4, np.float16)})
    return {"single": {"model.safetensors": content}}


def _shards() -> dict[str, Files]:
    files = {f"model-{index}.safetensors": save({f"t{index}": np.ones(2, np.float32)}) for index in (1, 2)}
    index = {
        "metadata": {"total_size": 16},
        "weight_map": {f"t{index}": f"model-{index}.safetensors" for index in (1, 2)},
    }
    return {"sharded": {**files, "model.safetensors.index.json": _json(index)}}


def read_weights(folder: Path) -> object:
    """Read the headers of weights."""
    weights = open_weights(folder)
    return {name: (path.name, weights.shapes[name]) for name, path in weights.where.items()}


@functools.cache
def _tokenizers() -> dict[str, Files]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder, vocab_size=270)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    files["special_tokens_map.json"] = _json({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    return {"plain": files}


def read_tokenizer(folder: Path) -> object:
    """Load a tokenizer and tokenise a label."""
    tokenizer = load_qwen_tokenizer(folder)
    encode = partial(encode_text, tokenizer)
    return encode("Is it benign?"), label_suffixes(encode, "ASSISTANT:", " ", ["benign", "no"])


def _processors() -> dict[str, Files]:
    settings = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 16, "width": 16},
    }
    return {"plain": {"preprocessor_config.json": _json(settings)}}


def read_processor(folder: Path) -> object:
    """Make an image processor and use it."""
    processor = siglip_processor(folder, 16)
    values = processor(images=[Image.new("RGB", (8, 6), (9, 90, 200))], return_tensors="pt")["pixel_values"]
    return tuple(values.shape), float(values.sum())


def _generation() -> dict[str, Files]:
    settings = {"eos_token_id": [3, 4], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 20}
    return {"plain": {"generation_config.json": _json(settings)}}


def read_generation(folder: Path) -> object:
    """Read the settings of generation."""
    return hulu_med.read_generation_config(folder).to_json_string()


def _attributions() -> dict[str, Files]:
    entry = {
        "method": "saliency",
        "layer": "pixels",
        "mode": "label",
        "baseline": "black",
        "steps": 2,
        "group": "g",
        "hit": True,
        "checks": {
            **{name: 0.2 for name in ("completeness_gap", "stability", "inside", "area")},
            **{f"{name}{end}": 0.3 for name in ("deletion", "insertion") for end in ("", "_random")},
            "pointing": True,
        },
    }
    return {
        "plain": {
            "entries/d-1.json": _json({"state": "s", "entries": [{**entry, "id": "d"}], "faults": []}),
            "process-0.json": _json(
                {"state": "s", "methods": [{"name": "saliency"}], "randomised": [], "warnings": ["w"], "faults": []}
            ),
        }
    }


def read_attributions(folder: Path) -> object:
    """Put the parts of an attribution store together."""
    return gather_index(folder, "task", "tiny", ("a", "b"))


def _target(name: str, seeds: Callable[[], dict[str, Files]], read: Callable[[Path], object], *words: Any) -> Target:
    return Target(
        twice=False,
        name=name,
        seeds=seeds,
        read=read,
        mutators={"*.safetensors": safetensors_mutator, "*.json": json_mutator(*words), "*": mutate_bytes},
        longest=2500,
    )


TARGETS: Final = {
    target.name: target
    for target in (
        _target("medm_vl_config", _configs, read_medm_vl, "lvlm", "qwen2", "siglip", "mlp", "attn_pooling", 4, 64),
        _target("old_llava_config", _old_llava_configs, read_old_llava, "llava", "patch", "openai/x", 4, 64),
        _target("hulu_med_config", _hulu_configs, read_hulu_med, "hulumed_qwen3", "qwen2", 4, 64),
        _target("citrus_v_config", _citrus_configs, read_citrus_v, "citrus_v", "mrope", 4, 64),
        _target("native_config", _native_configs, read_native, "gemma3", "llava"),
        _target("weights", _weights, read_weights),
        _target("shards", _shards, read_weights, "model-1.safetensors", "t1"),
        _target("tokenizer", _tokenizers, read_tokenizer, "<|im_end|>", "Qwen2Tokenizer", "BPE", "ByteLevel", 3),
        _target("processor", _processors, read_processor, [0.5], 16, {"height": 16}),
        _target("generation_config", _generation, read_generation, [3], "x", 5),
        _target(
            "attribution_store", _attributions, read_attributions, "saliency", {"method": "saliency", "layer": "a"}
        ),
    )
}
