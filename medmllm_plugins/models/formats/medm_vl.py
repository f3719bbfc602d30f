"""MedM-VL (Shi et al., arXiv:2504.04323): a SigLIP tower, a connector and Qwen2.5, as LLaVA; for images or chest CT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.adapters import adapter_files
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.models.checkpoint import Weights, find_folder, open_weights
from medmllm_plugins.models.families.medm_vl_ct import MedMVLCTFamily, SlicesLlava, volume_of, volume_pixels
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model, rename_by_table
from medmllm_plugins.models.formats.llm_tokenizer import TOKENIZER_FILES, load_qwen_tokenizer, tokenizer_folder
from medmllm_plugins.models.formats.medm_vl_config import ATTENTION_POOLING, MLP, MedMVLConfig, read_config
from medmllm_plugins.models.formats.templated_model import IMAGE, TemplatedModel
from medmllm_plugins.models.image_inputs import PREPROCESSOR, siglip_processor
from medmllm_plugins.models.options import LoadOptions

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
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

Wrapper = TypeVar("Wrapper", bound="MedMVL")


def rename(name: str) -> str | None:
    """Give transformers' name for a tensor of a MedM-VL checkpoint; ``None`` for the tower's unused pooling head."""
    if _POOLING_HEAD.match(name):
        return None
    return rename_by_table(name, _RENAME)


def load(options: LoadOptions) -> MedMVL:
    """Load a MedM-VL 2D checkpoint: a local folder, a hub id, or ``"demo"``.

    A whole local folder (config, safetensors weights, tokenizer) is loaded without any network access.

    Raises:
        ModelError: there is no such checkpoint, or it is no MedM-VL 2D checkpoint.
        OptionError: the device or the attention implementation is not available.
    """
    return _load(options, MLP, LlavaForConditionalGeneration, MedMVL)


def load_ct(options: LoadOptions) -> MedMVLCT:
    """Load a MedM-VL-CT checkpoint: a local folder or a hub id; see :func:`load` for the errors."""
    return _load(options, ATTENTION_POOLING, SlicesLlava, MedMVLCT)


def _load(
    options: LoadOptions, connector: str, architecture: type[LlavaForConditionalGeneration], wrapper: type[Wrapper]
) -> Wrapper:
    options.check()
    folder = find_folder(options.pretrained)
    config = read_config(folder, connector)
    weights = open_weights(folder)
    tokenizer_source = tokenizer_folder(folder, config.llm_name)
    tokenizer = load_qwen_tokenizer(tokenizer_source)
    model = build_model(
        architecture,
        llava_config(config, _image_token(tokenizer, config, tokenizer_source)),
        weights,
        _rename_tied(weights) if config.llm.tie_word_embeddings else rename,
        options,
        left_out=(*FOREIGN, "system"),
    )
    files = [folder / "config.json", folder / PREPROCESSOR, *(tokenizer_source / name for name in TOKENIZER_FILES)]
    return wrapper(
        model,
        tokenizer,
        siglip_processor(folder, int(config.vision.image_size)),  # type: ignore[arg-type]
        f"{SYSTEM} USER: ",
        (*(file for file in files if file.is_file()), *weights.files, *adapter_files(options)),
        max_length=min(config.max_length, int(config.llm.max_position_embeddings)),
        pad_token_id=int(tokenizer.pad_token_id),
    )


def llava_config(config: MedMVLConfig, image_token: int) -> LlavaConfig:
    """Return a checkpoint's shapes as transformers takes them; ``image_token`` marks the image."""
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
            f"The tokenizer in {folder} has no {IMAGE_TOKEN} token, which marks the image: "
            f"use that of {config.llm_name}."
        )
    if max(vocabulary.values()) >= config.llm.vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has tokens up to {max(vocabulary.values())}, but the model's vocabulary has "
            f"{config.llm.vocab_size}: it belongs to another model."
        )
    return image_token


def _rename_tied(weights: Weights) -> Any:
    """Return :func:`rename`, for a checkpoint with tied embeddings.

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


class MedMVL(TemplatedModel):
    """A MedM-VL 2D model in memory.

    Where the authors' code cuts a long prompt, or takes ``<image>`` in a question for one more image, this does not.
    """

    def _after(self, question: str) -> str:
        # The authors strip image and question together, so the question's start is kept.
        return f"{IMAGE}\n{question}".strip().removeprefix(IMAGE) + " ASSISTANT:"


class MedMVLCT(MedMVL):
    """A MedM-VL-CT model in memory; a question is about a volume."""

    shows = "volume"
    architecture = MedMVLCTFamily

    def _pixels(self, images: Sequence[VisualInput]) -> Tensor:
        """Return the slices of all volumes, one after the other, (B * 32, 3, H, W), float32."""
        side = int(self.model.config.vision_config.image_size)  # type: ignore[union-attr]
        return torch.cat([volume_pixels(volume_of(item), side) for item in images])
