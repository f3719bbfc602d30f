"""Parts of tiny random checkpoints, for the checks of an architecture of your own.

:mod:`medmllm_plugins.testing.tiny_families` shows how they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

hf: Any = transformers
WORDS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT:",
    "Classify this breast ultrasound image into one of the following categories: benign, malignant, normal. "
    "Answer with the category name only.",
]
"""The sentences on which tiny tokenizers are trained."""
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
"""Arguments of a tiny LLM's config."""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}SLOT{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template; put the processor's image token in place of ``SLOT``."""
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
"""Arguments of a tiny vision tower's config."""


def multimodal_rope(**more: Any) -> dict[str, Any]:
    """Return rotary positions of Qwen2-VL and its relatives; a new object, since configs write into what they get."""
    return {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6, **more}


def token_ids(words: Any, **tokens: str) -> dict[str, int]:
    """Return the ids of a tokenizer's tokens by the names of arguments of a config."""
    return {name: words.convert_tokens_to_ids(token) for name, token in tokens.items()}


def tokenizer(special: list[str], **named: str) -> Any:
    """Train a byte-level BPE tokenizer with special tokens: padding is token 0, the end of a turn token 1.

    ``named`` are special tokens that the processor looks up, such as ``image_token="<image>"``.
    """
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


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw weights that let every part move the logits.

    Those with which transformers begins are near zero, and Gemma 3's projector is zero.
    """
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


def write_checkpoint(model: Any, processor: Any, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint with random weights: config, weights under the names its hub repository uses, processor.

    Returns:
        The folder.
    """
    randomise(model, seed)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
