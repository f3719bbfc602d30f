"""Tiny random checkpoints of every built-in family, saved as their hub repositories are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers

from medmllm_plugins.testing.tiny_checkpoints import (
    CHATML,
    SIGLIP,
    TEXT,
    multimodal_rope,
    token_ids,
    tokenizer,
    write_checkpoint,
)
from medmllm_plugins.testing.tiny_gemmas import gemma3, gemma4, paligemma

hf: Any = transformers


def _qwen(kind: str, vision: dict[str, Any], image: Any, more: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = tokenizer(special, image_token="<|image_pad|>", video_token="<|video_pad|>")
    ids = token_ids(
        words,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    prefixes = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
    prefix = prefixes.get(kind, "Qwen3_5")
    text = {**TEXT, "rope_parameters": multimodal_rope(), **(more or {})}
    if kind.startswith("qwen3_vl"):
        text |= {"head_dim": 8}
    if kind == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    config = getattr(hf, f"{prefix}Config")(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
    newer = kind.startswith("qwen3_")
    video = "Qwen3VLVideoProcessor" if newer else "Qwen2VLVideoProcessor"
    processor = getattr(hf, "Qwen3VLProcessor" if newer else f"{prefix}Processor")(
        image_processor=image,
        tokenizer=words,
        video_processor=getattr(hf, video)(patch_size=image.patch_size, merge_size=image.merge_size),
        chat_template=CHATML.replace("SLOT", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    image = hf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 12)
    return _qwen("qwen2_vl", vision, image)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "depth": 3,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [2],
    }
    image = hf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 12)
    return _qwen("qwen2_5_vl", vision, image)


def qwen3_vl(kind: str = "qwen3_vl") -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "depth": 3,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    image = hf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 12)
    return _qwen(kind, vision, image)


def qwen3_5() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "depth": 3,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
    }
    image = hf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 12)
    text = {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    return _qwen("qwen3_5", vision, image, text)


def glm4v() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    special = ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>"]
    special += ["<|begin_of_video|>", "<|end_of_video|>", "<|video|>"]
    words = tokenizer(special, image_token="<|image|>", video_token="<|video|>")
    ids = token_ids(
        words,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "image_size": 64,
    }
    text = {**TEXT, "rope_parameters": multimodal_rope(partial_rotary_factor=1.0)}
    config = hf.Glm4vConfig(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
    sizes = {"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 12 * 2}
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(patch_size=8, merge_size=2, size=sizes),
        tokenizer=words,
        video_processor=hf.Glm4vVideoProcessor(patch_size=8, merge_size=2),
        chat_template=CHATML.replace("SLOT", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["<image>"], image_token="<image>")
    vision = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}
    config = hf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config=vision,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=False,
        **token_ids(words, image_token_index="<image>"),
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("SLOT", "<image>\n"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["<image>"], image_token="<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        text_config={**TEXT, "model_type": "mistral"},
        vision_config={**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32},
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
        **token_ids(words, image_token_index="<image>"),
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
        ),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("SLOT", "<image>\n"),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["<image>", "<video>"], image_token="<image>", video_token="<video>")
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = hf.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
        **token_ids(words, image_token_id="<image>", video_token_id="<video>"),
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 32, "width": 32}, image_grid_pinpoints=grid, do_pad=True
        ),
        tokenizer=words,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=CHATML.replace("SLOT", "<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    special = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    words = tokenizer(
        special,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**SIGLIP, "image_size": [32, 32], "patch_size": [8, 8]},
        tie_word_embeddings=False,
        **token_ids(words, image_token_id="<IMG_CONTEXT>"),
    )
    size = {"height": 32, "width": 32}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer=words,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHATML.replace("SLOT", "<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def video_llama_3() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["<|image_pad|>", "<|video_pad|>"], image_token="<|image_pad|>", video_token="<|video_pad|>")
    vision = {key: value for key, value in SIGLIP.items() if key != "image_size"}
    config = hf.VideoLlama3Config(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=vision,
        tie_word_embeddings=False,
        **token_ids(words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(patch_size=8, merge_size=1, min_pixels=64 * 4, max_pixels=64 * 20),
        tokenizer=words,
        video_processor=hf.VideoLlama3VideoProcessor(patch_size=8),
        chat_template=CHATML.replace("SLOT", "<|image_pad|>"),
    )
    return hf.VideoLlama3ForConditionalGeneration(config), processor


def _idefics(kind: str) -> tuple[Any, Any]:
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    words = tokenizer(
        special,
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        end_of_utterance_token="<end_of_utterance>",
        global_image_token="<global-img>",
    )
    prefix = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    config = getattr(hf, f"{prefix}Config")(
        text_config={**TEXT, "model_type": "llama"},
        vision_config=SIGLIP,
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=0,
        **token_ids(words, image_token_id="<image>"),
    )
    image = getattr(hf, f"{prefix}ImageProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    more = {"video_processor": hf.SmolVLMVideoProcessor()} if kind == "smolvlm" else {}
    processor = getattr(hf, f"{prefix}Processor")(
        image_processor=image,
        tokenizer=words,
        image_seq_len=4,
        chat_template=CHATML.replace("SLOT", "<image>"),
        **more,
    )
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config), processor


def mistral3() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    vision = {key: value for key, value in SIGLIP.items() if key != "model_type"}
    config = hf.Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "head_dim": 8, "sliding_window": None},
        vision_config={**vision, "model_type": "pixtral", "image_size": 64},
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **token_ids(words, image_token_index="[IMG]"),
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(patch_size=8, size={"longest_edge": 64}),
        tokenizer=words,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=CHATML.replace("SLOT", "[IMG]"),
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


FAMILIES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": lambda: qwen3_vl("qwen3_vl_moe"),
    "qwen3_5": qwen3_5,
    "glm4v": glm4v,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gemma4_moe": lambda: gemma4("gemma4_moe"),
    "gemma4_e": lambda: gemma4("gemma4_e"),
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "video_llama_3": video_llama_3,
    "idefics3": lambda: _idefics("idefics3"),
    "smolvlm": lambda: _idefics("smolvlm"),
    "paligemma": paligemma,
    "mistral3": mistral3,
}


def write_family(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of a family; see :func:`~medmllm_plugins.testing.tiny_checkpoints.write_checkpoint`."""
    return write_checkpoint(*FAMILIES[kind](), folder, seed)
