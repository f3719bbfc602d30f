"""Shapes of the language models and vision towers that checkpoints refer to by name.

A MedM-VL checkpoint written since October 2025 names its parts and holds no shapes. The published ones stand here, so
that no network is needed; every tensor's shape is checked against the weights at load, so a wrong row cannot go
unnoticed. Source: the ``config.json`` of each repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.checkpoint import read_json


def _qwen(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, tied: bool, vocab: int
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
    }


def _siglip(hidden: int, intermediate: int, layers: int, heads: int, image: int, patch: int) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_channels": 3,
        "image_size": image,
        "patch_size": patch,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


LLMS: Mapping[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 4864, 24, 14, 2, True, 151936),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2, True, 151936),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11008, 36, 16, 2, True, 151936),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18944, 28, 28, 4, False, 152064),
}
CLIP_TOWERS: Mapping[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
}
NAVIT_TOWERS: Mapping[str, dict[str, Any]] = {
    # SigLIP's largest tower with rotary positions, as VideoLLaMA 3 and Hulu-Med have it.
    "DAMO-NLP-SG/VL3-SigLIP-NaViT": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_channels": 3,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
}
VISION_TOWERS: Mapping[str, dict[str, Any]] = {
    "google/siglip-base-patch16-224": _siglip(768, 3072, 12, 12, 224, 16),
    "google/siglip-base-patch16-256": _siglip(768, 3072, 12, 12, 256, 16),
    "google/siglip-base-patch16-256-multilingual": _siglip(768, 3072, 12, 12, 256, 16),
    "google/siglip-base-patch16-384": _siglip(768, 3072, 12, 12, 384, 16),
    "google/siglip-so400m-patch14-384": _siglip(1152, 4304, 27, 16, 384, 14),
}


def published_name(name: str, table: Mapping[str, Any]) -> str | None:
    """Return the table's name for ``name``: the same, or ending alike where ``name`` is a path on the authors' machine."""
    ends = {known.rsplit("/", 1)[1]: known for known in table}
    return name if name in table else ends.get(name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])


def named_folder(name: str, checkpoint: Path) -> Path | None:
    """Return the local folder that ``name`` means, absolute or relative to the checkpoint; ``None`` where there is none."""
    try:
        folder = checkpoint / Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a home folder of nobody
        return None


def base_config(name: str, table: Mapping[str, dict[str, Any]], checkpoint: Path) -> dict[str, Any]:
    """Return the shapes of a part that a checkpoint refers to by name, from a local folder or the table, never from a network.

    Raises:
        ModelError: neither knows the name.
    """
    folder = named_folder(name, checkpoint)
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    known = published_name(name, table)
    if known is None:
        raise ModelError(
            f"The checkpoint in {checkpoint} builds on {shown(name)}, whose shapes it does not hold. Expected one of "
            f"{', '.join(table)}, or a local folder (absolute, or relative to the checkpoint) with its config.json."
        )
    return dict(table[known])
