"""Parts of tiny random checkpoints: settings, a tokenizer and a chat template."""

from __future__ import annotations

from typing import Any

import transformers as hf
from support.tiny_medm_vl import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

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


def token_ids(words: Any, **tokens: str) -> dict[str, int]:
    return {key: words.convert_tokens_to_ids(token) for key, token in tokens.items()}


SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
