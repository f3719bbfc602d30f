"""Tiny random checkpoints of Gemma 3, Gemma 4 and PaliGemma, saved as their hub repositories are."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from medmllm_plugins.testing.tiny_checkpoints import CHATML, SIGLIP, TEXT, VOCABULARY, token_ids, tokenizer

hf: Any = transformers


def gemma3() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
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
        **token_ids(
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
    """Return Gemma 4: dense, with experts, or a small size, whose blocks share keys and have inputs of their own."""
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
        **token_ids(
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


def paligemma() -> tuple[Any, Any]:
    """Return a tiny model and its processor."""
    words = tokenizer(["<image>", "<bos>"], image_token="<image>")
    words.bos_token = "<bos>"
    text = {**TEXT, "model_type": "gemma", "head_dim": 8}
    config = hf.PaliGemmaConfig(
        text_config=text,
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        projection_dim=32,
        hidden_size=32,
        **token_ids(words, image_token_index="<image>"),
    )
    image = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    image.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(image_processor=image, tokenizer=words)
