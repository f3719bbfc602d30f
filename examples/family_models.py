"""Small models of two published families, for ``train_families.py``: configurations, tokenizers and image layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

import torch
import transformers as hf
from phantom_training import PATCH, SIDE, example_texts, initialise
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs

MERGE = 2
"""Side, in patches, of the block that becomes one token of the language model."""
WINDOW = 4
"""Patches along each side of a window of Qwen2.5-VL's tower."""
TOWER_WIDTH = 64
TOWER_DEPTH = 4
LLM_WIDTH = 96
HEADS = 4
VOCABULARY = 640


def write_tokenizer(special: Sequence[str], end: str, roles: str, **named: str) -> Any:
    """Train a byte-level BPE tokenizer in which nearly each word of the questions and answers is one token.

    Args:
        special: special tokens of the family, including ``end``; padding is added.
        end: the token that ends an answer.
        roles: text of the chat template around the question.
        **named: tokens that the family's processor reads from the tokenizer, such as ``image_token``.
    """
    spec = demo_spec()
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    all_special = ["<pad>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=all_special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator([*example_texts(spec, ""), roles] * 8, trainer)
    base.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in all_special])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token=end, extra_special_tokens=named
    )


def demo_spec() -> DatasetSpec:
    """Return the declaration of the phantom data set."""
    return dataset_specs()["demo"]


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Return the settings that the language models of both families share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": LLM_WIDTH,
        "intermediate_size": 2 * LLM_WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def qwen2_5_vl() -> tuple[Any, Any]:
    """Return a Qwen2.5-VL with random weights, and its processor."""
    tokenizer = write_tokenizer(
        ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        "<|im_end|>",
        "user\nassistant\n",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    # The sections divide half a head's width among time, row and column.
    positions = {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 10_000.0}
    config = hf.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, num_hidden_layers=3, rope_parameters=positions),
        vision_config={
            "hidden_size": TOWER_WIDTH,
            "out_hidden_size": LLM_WIDTH,
            "intermediate_size": 3 * TOWER_WIDTH // 2,
            "depth": TOWER_DEPTH,
            "num_heads": HEADS,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": WINDOW * PATCH,
            "fullatt_block_indexes": list(range(1, TOWER_DEPTH, 2)),
        },
        tie_word_embeddings=True,
        **ids,
    )
    whole = phantoms.SIZE**2
    image = hf.Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        min_pixels=whole,
        max_pixels=whole,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
        "{% for part in ([{'type': 'text', 'text': turn.content}] if turn.content is string else turn.content) %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    video = hf.Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE)
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """Return a Gemma 3 with random weights, and its processor."""
    tokenizer = write_tokenizer(
        ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        "<end_of_turn>",
        "user\nmodel\n\n",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    tokenizer.bos_token = "<bos>"
    tokens = (SIDE // MERGE) ** 2
    config = hf.Gemma3Config(
        text_config=_text(
            tokenizer,
            num_hidden_layers=4,
            head_dim=LLM_WIDTH // HEADS,
            query_pre_attn_scalar=LLM_WIDTH // HEADS,
            # Shorter than the question.
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        vision_config={
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 2 * TOWER_WIDTH,
            "num_hidden_layers": TOWER_DEPTH,
            "num_attention_heads": HEADS,
            "image_size": phantoms.SIZE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        mm_tokens_per_image=tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=True,
    )
    size = {"height": phantoms.SIZE, "width": phantoms.SIZE}
    template = (
        "{{ bos_token }}{% for turn in messages %}<start_of_turn>"
        "{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
        "{% for part in ([{'type': 'text', 'text': turn.content}] if turn.content is string else turn.content) %}"
        "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        chat_template=template,
        image_seq_length=tokens,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a family is built and trained.

    Attributes:
        build: returns model and processor.
        pixels: arranges grey values, (B, 64, 64), float32 in [-1, 1], as the family's processor does.
        patches: the image's patches in the order of the tower's output, (64,), int64.
        tower: module name of the tower.
        connector: module name of the connector; ``None`` if it is inside the tower.
        steps: steps of the two stages.
        rate: see :class:`Descent`.
    """

    build: Callable[[], tuple[Any, Any]]
    pixels: Callable[[Tensor], Tensor]
    patches: Tensor
    tower: str
    connector: str | None
    steps: tuple[int, int]
    rate: float


def _merged(values: Tensor) -> Tensor:
    """Return a grid's patches, (B, 8, 8, ...), in Qwen's order, (B, 64, ...): those of one token are adjacent."""
    cells = SIDE // MERGE
    cut = values.unflatten(1, (cells, MERGE)).unflatten(3, (cells, MERGE))
    return cut.transpose(2, 3).flatten(1, 4)


def _flat(grey: Tensor) -> Tensor:
    """Return Qwen's layout, (B * 64, 3 * 2 * 8 * 8): a row per patch, for three channels and two equal frames each."""
    grid = grey.unflatten(2, (SIDE, PATCH)).unflatten(1, (SIDE, PATCH)).transpose(2, 3)
    rows = _merged(grid).flatten(0, 1).flatten(1)
    return rows[:, None].expand(-1, 6, -1).flatten(1)


def _windowed() -> Tensor:
    """Return the image's patches in the order of Qwen2.5-VL's tower: by window, then by token."""
    tokens = _merged(torch.arange(SIDE**2).view(1, SIDE, SIDE)).view(SIDE // MERGE, SIDE // MERGE, MERGE**2)
    across, inside = SIDE // WINDOW, WINDOW // MERGE
    return tokens.view(across, inside, across, inside, -1).transpose(1, 2).flatten()


RECIPES: Final[Mapping[str, Recipe]] = {
    "qwen2_5_vl": Recipe(
        build=qwen2_5_vl,
        pixels=_flat,
        patches=_windowed(),
        tower="model.visual",
        connector=None,
        steps=(400, 250),
        rate=0.008,
    ),
    "gemma3": Recipe(
        build=gemma3,
        pixels=lambda grey: grey[:, None].expand(-1, 3, -1, -1),
        patches=torch.arange(SIDE**2),
        tower="model.vision_tower",
        connector="model.multi_modal_projector",
        steps=(450, 350),
        rate=0.01,
    ),
}


def start(model: nn.Module, recipe: Recipe) -> None:
    """Initialise the matrices again, see :func:`phantom_training.initialise`."""
    initialise(model, LLM_WIDTH)
    if recipe.connector is not None:
        for value in model.get_submodule(recipe.connector).parameters():
            if value.dim() == 2:  # Gemma 3's projection is zero before it is trained
                nn.init.normal_(value, std=value.shape[0] ** -0.5)


def quicken(model: nn.Module, recipe: Recipe) -> Callable[[], None]:
    """Let Qwen2.5-VL's tower attend to all windows at once (they have one size here); transformers loops over them.

    Returns:
        A function that undoes the change.
    """
    changed = [block.attn for block in getattr(model.get_submodule(recipe.tower), "blocks", ())]

    def attend(
        self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        length = int(cu_seqlens[1])
        query, key, value = self.qkv(hidden_states).view(-1, length, 3, self.num_heads, self.head_dim).unbind(2)
        cos, sin = (values.view(-1, length, 1, self.head_dim) for values in position_embeddings)

        def turned(vectors: Tensor) -> Tensor:
            first, second = vectors.chunk(2, dim=-1)
            return vectors * cos + torch.cat([-second, first], dim=-1) * sin

        heads = nn.functional.scaled_dot_product_attention(
            turned(query).transpose(1, 2), turned(key).transpose(1, 2), value.transpose(1, 2), scale=self.scaling
        )
        attended: Tensor = self.proj(heads.transpose(1, 2).reshape(len(hidden_states), -1))
        return attended

    for attention in changed:
        attention.forward = MethodType(attend, attention)

    def undo() -> None:
        for attention in changed:
            del attention.forward

    return undo
