"""MedM-VL 2D (Shi et al., arXiv 2504.04323): a SigLIP tower, a two-layer MLP connector and Qwen2.5, as LLaVA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput, single
from medmllm_plugins.models.checkpoint import Weights, find_folder, open_weights
from medmllm_plugins.models.device_transfer import to_device
from medmllm_plugins.models.families.family_registry import FAMILIES
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model
from medmllm_plugins.models.formats.medm_vl_config import MLP, MedMVLConfig, read_config
from medmllm_plugins.models.image_inputs import PREPROCESSOR, pixel_values, siglip_processor
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.tokens import (
    TOKENIZER_FILES,
    encode_text,
    label_tokens,
    load_qwen_tokenizer,
    tokenizer_folder,
)
from medmllm_plugins.plugins.published_checkpoints import MEDM_VL

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE = "<image>"
IMAGE_TOKEN = "<|image_pad|>"

_HEAD, _EMBED = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
_RENAME = (
    (re.compile(r"^llm\.model\."), "model.language_model."),
    (re.compile(r"^llm\.lm_head\."), "lm_head."),
    (re.compile(r"^encoder_image\.encoder\.(?:vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^connector_image\.connector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^connector_image\.connector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^connector_image\.(query$|attn\.)"), r"model.multi_modal_projector.\1"),
)
# The tower's attention-pooling head is saved with the tower, but the connector takes hidden states from before it.
_POOLING_HEAD = re.compile(r"^encoder_image\.encoder\.(?:vision_model\.)?head\.")

Wrapped = TypeVar("Wrapped", bound="MedMVL")


def rename(name: str) -> str | None:
    """Give transformers' name for a tensor of a MedM-VL checkpoint; ``None`` for the tower's unused pooling head."""
    if _POOLING_HEAD.match(name):
        return None
    for pattern, new in _RENAME:
        if pattern.match(name):
            return pattern.sub(new, name)
    return name


def load(options: LoadOptions) -> MedMVL:
    """Load a MedM-VL 2D checkpoint: a local folder, a hub id, ``"2d-3b"``, or ``"demo"``.

    A whole local folder (config, safetensors weights, tokenizer) is loaded without any network access.

    Raises:
        ModelError: there is no such checkpoint, or it is no MedM-VL 2D checkpoint.
        OptionError: the device or the attention implementation cannot be had.
    """
    return open_medm_vl(options, MEDM_VL, MLP, LlavaForConditionalGeneration, MedMVL)


def open_medm_vl(
    options: LoadOptions,
    sizes: Mapping[str, str],
    connector: str,
    architecture: type[LlavaForConditionalGeneration],
    wrap: type[Wrapped],
) -> Wrapped:
    """Load a MedM-VL checkpoint; see :func:`load` for the errors.

    Args:
        options: what the user chose.
        sizes: short names, to hub ids.
        connector: the connector's type, which tells the models apart.
        architecture: transformers' class, or one derived from it.
        wrap: our class for it.
    """
    options.check()
    folder = find_folder(options.pretrained, sizes)
    config = read_config(folder, connector)
    weights = open_weights(folder)
    words = tokenizer_folder(folder, config.llm_name)
    tokenizer = load_qwen_tokenizer(words)
    processor = siglip_processor(folder, int(config.vision.image_size))  # type: ignore[arg-type]
    model = build_model(
        architecture,
        llava_config(config, _image_token(tokenizer, config, words)),
        weights,
        _rename_tied(weights) if config.llm.tie_word_embeddings else rename,
        options,
        left_out=(*FOREIGN, "system"),
    )
    files = [folder / "config.json", folder / PREPROCESSOR, *(words / name for name in TOKENIZER_FILES), *weights.files]
    return wrap(model, tokenizer, processor, config, tuple(file for file in files if file.is_file()))


def llava_config(config: MedMVLConfig, image_token: int) -> LlavaConfig:
    """A checkpoint's shapes as transformers takes them.

    Args:
        config: what its config.json says.
        image_token: the token that holds the image's place.
    """
    return LlavaConfig(
        vision_config=config.vision,
        text_config=config.llm,
        image_token_index=image_token,
        image_seq_length=config.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_select_strategy=config.select,
        vision_feature_layer=config.select_layer,
        tie_word_embeddings=bool(config.llm.tie_word_embeddings),
    )


def _image_token(tokenizer: PreTrainedTokenizerBase, config: MedMVLConfig, folder: Path) -> int:
    vocabulary = tokenizer.get_vocab()
    image_token = vocabulary.get(IMAGE_TOKEN)
    if image_token is None:
        raise ModelError(
            f"The tokenizer in {folder} has no {IMAGE_TOKEN} token, which holds the image's place: "
            f"use that of {config.llm_name}."
        )
    if max(vocabulary.values()) >= config.llm.vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has tokens up to {max(vocabulary.values())}, but the model's vocabulary has "
            f"{config.llm.vocab_size}: it belongs to another model."
        )
    return image_token


def _rename_tied(weights: Weights) -> Any:
    """:func:`rename`, for a checkpoint with tied embeddings.

    Some ways of saving write the tied matrix under both names. The second is left out, once it has been compared.
    """
    if _HEAD not in weights.where or _EMBED not in weights.where:
        return rename

    def read(name: str) -> Tensor:
        with safe_open(str(weights.where[name]), framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    if not torch.equal(read(_HEAD), read(_EMBED)):
        raise ModelError(
            f"The config says `tie_word_embeddings`, but {_HEAD} and {_EMBED} differ in {weights.files[0].parent}: "
            "set it to false in the config if the output embeddings were trained on their own."
        )
    return lambda name: None if name == _HEAD else rename(name)


class MedMVL(LoadedModel):
    """A MedM-VL 2D model in memory; see :class:`medmllm_plugins.models.base.LoadedModel`.

    The stages are ``model.model.vision_tower``, ``model.model.multi_modal_projector``, ``model.model.language_model``.
    """

    model: LlavaForConditionalGeneration

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        config: MedMVLConfig,
        files: tuple[Path, ...],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.family = FAMILIES["llava"]
        self.device = model.device
        self.dtype = model.dtype
        self.max_length = min(config.max_length, int(config.llm.max_position_embeddings))
        # The authors end an answer at the tokenizer's token only, not at every one that Qwen names.
        self.eos_token_ids = (int(tokenizer.eos_token_id),)
        self.pad_token_id = int(tokenizer.pad_token_id)
        self.image_tokens = config.image_tokens
        self._image_token = int(model.config.image_token_id)
        self._processor = processor
        self._files = files
        self._opening = encode_text(tokenizer, f"{SYSTEM} USER: ")

    def render(self, question: Question) -> str:
        """Return the whole prompt; the first ``<image>`` in it stands for the image's tokens.

        Like the authors' template, it strips white space at the question's end.
        """
        return f"{SYSTEM} USER: {IMAGE}{self._closing(single(question))}"

    def _closing(self, question: str) -> str:
        """The prompt after the image. The authors strip image and question together, so its start is kept."""
        return f"{IMAGE}\n{question}".strip().removeprefix(IMAGE) + " ASSISTANT:"

    def prepare(self, questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        """Make the input of B questions about one image each.

        The text before and after the image is tokenised apart, as the authors do, with no beginning-of-sequence token.
        In a question, ``<image>`` and the names of special tokens are plain text; the authors' code would take
        ``<image>`` for one more image. Where theirs cuts a long prompt, this raises.
        """
        if len(questions) != len(images):
            raise ModelError(f"Expected one image a question, but got {len(questions)} and {len(images)}.")
        if not questions:
            raise ModelError("Expected at least one question and image, but got none.")
        pixels = self._pixels(images)
        rows = [self._prompt_ids(single(question)) for question in questions]
        longest = max(map(len, rows))
        self.check_length(longest, 0)
        ids = torch.tensor([[self.pad_token_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {
            "input_ids": to_device(ids, self.device, self.dtype),
            "attention_mask": to_device(mask, self.device, self.dtype),
            "pixel_values": to_device(pixels, self.device, self.dtype),
        }

    def _pixels(self, images: Sequence[VisualInput]) -> Tensor:
        """(B, 3, H, W), float32."""
        return pixel_values(self._processor, [_one(item) for item in images])

    def _prompt_ids(self, question: str) -> list[int]:
        closing = encode_text(self.tokenizer, self._closing(question))
        return [*self._opening, *[self._image_token] * self.image_tokens, *closing]

    def label_ids(self, question: Question, labels: Sequence[str]) -> list[list[int]]:
        """Token ids of ``" " + label`` as they follow ``ASSISTANT:``, tokenised together with the prompt."""
        return label_tokens(self.tokenizer, self._closing(single(question)), " ", labels)


def _one(item: VisualInput) -> Any:
    if not isinstance(item, list | tuple):
        return item
    if len(item) != 1:
        raise ModelError(f"Expected one image a question, which is what MedM-VL takes, found {len(item)}.")
    return item[0]
