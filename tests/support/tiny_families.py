"""Tiny random checkpoints of every family that transformers knows, saved as their hub repositories are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from support.tiny_medm_vl import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

VOCABULARY = 400
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}SLOT{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(special: list[str], **named: str) -> Any:
    """A byte-level BPE tokenizer: padding is token 0, the end of a turn token 1."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    all_special = ["<pad>", "<|im_end|>", "<|im_start|>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=all_special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator([*WORDS, "user\nassistant\nsystem\n"], trainer)
    base.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in all_special])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens=named
    )


def _ids(words: Any, **tokens: str) -> dict[str, int]:
    return {key: words.convert_tokens_to_ids(token) for key, token in tokens.items()}


def _qwen(kind: str, vision: dict[str, Any], image: Any, more: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = tokenizer(special, image_token="<|image_pad|>", video_token="<|video_pad|>")
    ids = _ids(
        words,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    prefixes = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
    prefix = prefixes.get(kind, "Qwen3_5")
    text = {**TEXT, "rope_parameters": MROPE, **(more or {})}
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
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    image = hf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 12)
    return _qwen("qwen2_vl", vision, image)


def qwen2_5_vl() -> tuple[Any, Any]:
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
    special = ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>"]
    special += ["<|begin_of_video|>", "<|end_of_video|>", "<|video|>"]
    words = tokenizer(special, image_token="<|image|>", video_token="<|video|>")
    ids = _ids(
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
    text = {**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
    config = hf.Glm4vConfig(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
    sizes = {"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 12 * 2}
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(patch_size=8, merge_size=2, size=sizes),
        tokenizer=words,
        video_processor=hf.Glm4vVideoProcessor(patch_size=8, merge_size=2),
        chat_template=CHATML.replace("SLOT", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return hf.Glm4vForConditionalGeneration(config), processor


SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def gemma3() -> tuple[Any, Any]:
    special = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    words = tokenizer(
        special, image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    text = {**TEXT, "head_dim": 8, "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 2}
    text["num_hidden_layers"] = 4
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        **_ids(
            words,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=words,
        chat_template=CHATML.replace("SLOT", "<start_of_image>"),
        image_seq_length=4,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def gemma4(kind: str = "gemma4") -> tuple[Any, Any]:
    """Gemma 4: dense; with experts; or as the small sizes, whose blocks share keys and have inputs of their own."""
    tokens = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    words = tokenizer([*tokens.values(), "<|video|>"], **tokens)
    small = kind == "gemma4_e"
    text: dict[str, Any] = {
        **TEXT,
        "num_hidden_layers": 6 if small else 4,
        "layer_types": ["sliding_attention", "full_attention"] * (3 if small else 2),
        "sliding_window": 512,
        "head_dim": 8,
        "global_head_dim": 16,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": None if small else "vision",
        "hidden_size_per_layer_input": 8 if small else 0,
        "vocab_size_per_layer_input": VOCABULARY,
    }
    if small:
        text |= {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    else:
        text |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    if kind == "gemma4_moe":
        text |= {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 160,
        "standardize": not small,
        "use_clipped_linears": small,
    }
    audio = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "subsampling_conv_channels": [8, 4],
        "output_proj_dims": 24,
    }
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio if small else None,
        tie_word_embeddings=False,
        **_ids(
            words,
            image_token_id="<|image|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            audio_token_id="<|audio|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
            video_token_id="<|video|>",
        ),
    )
    image = {"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(**image),
        tokenizer=words,
        video_processor=hf.Gemma4VideoProcessor(**image),
        image_seq_length=70,
        chat_template=CHATML.replace("SLOT", "<|image|>"),
    )
    model = hf.Gemma4ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith(("layer_scalar", "std_scale")):
            buffer.copy_(0.8 + 0.4 * torch.rand(buffer.shape, generator=generator))
        elif name.endswith("std_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model, processor


def llava() -> tuple[Any, Any]:
    words = tokenizer(["<image>"], image_token="<image>")
    vision = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}
    config = hf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config=vision,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=False,
        **_ids(words, image_token_index="<image>"),
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
    words = tokenizer(["<image>"], image_token="<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        text_config={**TEXT, "model_type": "mistral"},
        vision_config={**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32},
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
        **_ids(words, image_token_index="<image>"),
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
        **_ids(words, image_token_id="<image>", video_token_id="<video>"),
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
        **_ids(words, image_token_id="<IMG_CONTEXT>"),
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
    words = tokenizer(["<|image_pad|>", "<|video_pad|>"], image_token="<|image_pad|>", video_token="<|video_pad|>")
    vision = {key: value for key, value in SIGLIP.items() if key != "image_size"}
    config = hf.VideoLlama3Config(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=vision,
        tie_word_embeddings=False,
        **_ids(words, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
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
        **_ids(words, image_token_id="<image>"),
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


def paligemma() -> tuple[Any, Any]:
    words = tokenizer(["<image>", "<bos>"], image_token="<image>")
    words.bos_token = "<bos>"
    text = {**TEXT, "model_type": "gemma", "head_dim": 8}
    config = hf.PaliGemmaConfig(
        text_config=text,
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        projection_dim=32,
        hidden_size=32,
        **_ids(words, image_token_index="<image>"),
    )
    image = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    image.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(image_processor=image, tokenizer=words)


def mistral3() -> tuple[Any, Any]:
    words = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    vision = {key: value for key, value in SIGLIP.items() if key != "model_type"}
    config = hf.Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "head_dim": 8, "sliding_window": None},
        vision_config={**vision, "model_type": "pixtral", "image_size": 64},
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **_ids(words, image_token_index="[IMG]"),
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


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights that let every part move the logits: transformers' own start near zero, Gemma 3's projector at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if value.dim() > 1:
                scale = value.shape[-1] ** -0.5 if "embed" not in name else 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
            elif name.endswith("weight"):
                adds_one = "Gemma" in type(model).__name__ and "Gemma4" not in type(model).__name__
                offset = 0.0 if adds_one and "vision" not in name else 1.0
                value.copy_(offset + torch.randn(value.shape, generator=generator) * 0.1)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def write_family(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint: config, weights under the names its hub repository uses, tokenizer and processor."""
    model, processor = FAMILIES[kind]()
    randomise(model, seed)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
