"""EfficientNet-Lite0, an MLP connector and SmolLM2: the model as transformers loads it, and its family.

The tower returns feature maps, (images, channels, rows, columns). The connector puts blocks of 2 x 2 cells of the last
one side by side, so that an image of 256 x 256 pixels becomes 16 tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from medmllm_plugins import Family

Inputs = Mapping[str, Tensor]
IntArray = npt.NDArray[np.int64]
PATCH = 8
"""Side of a patch in pixels: that of a cell of the first stage's map."""
CELLS = {"vision.00": 1, "vision.01": 2, "vision.02": 2, "vision.03": 4, "vision.04": 4}
"""Side of a cell of each stage's map in patches."""
STEM_STAGES = 2
"""Stages of EfficientNet that count as its stem; their maps are larger than one cell a patch."""
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""The name that this version of transformers has for the cache of keys and values."""
MERGED = 2
"""Side of an image token in cells of the last map."""


class SmallFamily(Family):
    """Names of the layers, and the patches that each of their rows covers."""

    title = "Small MLLM"
    model_type = "small_mllm"
    vision_blocks = "model.vision_tower.stages"
    vision_norm = None

    def to_rows(self, layer: str, output: Tensor) -> Tensor:
        """Put the channels of a feature map last."""
        return output if layer == "connector" else output.movedim(1, -1)

    def from_rows(self, layer: str, rows: Tensor) -> Tensor:
        """Put the channels of a feature map back."""
        return rows if layer == "connector" else rows.movedim(-1, 1)

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patches of each cell of a layer's map."""
        return self.merge_blocks(self.patches_of_tiles(model, inputs), CELLS[layer])

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the side of an image token in patches."""
        return MERGED * CELLS["vision.04"]


class TowerConfig(PretrainedConfig):
    """Configuration of the tower.

    Attributes:
        architecture: name of an EfficientNet-Lite in timm.
        hidden_size: channels of its last map.
    """

    model_type = "small_mllm_tower"
    architecture: str = "tf_efficientnet_lite0"
    image_size: int = 256
    patch_size: int = PATCH
    hidden_size: int = 320


class SmallConfig(PretrainedConfig):
    """Configuration of the whole model."""

    model_type = "small_mllm"
    sub_configs = {"vision_config": TowerConfig, "text_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, vision_config: Any = None, text_config: Any = None, image_token_id: int = 0, **more: Any):
        self.vision_config = TowerConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config
        self.image_token_id = image_token_id
        super().__init__(**more)


class Tower(nn.Module):
    """The convolutional stages of an EfficientNet-Lite, without its classifier."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        net: Any = timm.create_model(architecture, pretrained=False)
        self.stem = nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:STEM_STAGES])
        self.stages = nn.ModuleList(net.blocks[STEM_STAGES:])

    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, H, W) to (images, channels, H / 32, W / 32)."""
        maps: Tensor = self.stem(pixels)
        for stage in self.stages:
            maps = stage(maps)
        return maps


class Connector(nn.Module):
    """A norm and an MLP to the LLM's width, on blocks of cells."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels * MERGED**2)
        self.linear_1, self.act, self.linear_2 = (
            nn.Linear(channels * MERGED**2, width),
            nn.GELU(),
            nn.Linear(width, width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, rows, columns) to (images, tokens, D)."""
        blocks = pixel_unshuffle(maps, MERGED).flatten(2).transpose(1, 2)
        tokens: Tensor = self.linear_2(self.act(self.linear_1(self.norm(blocks))))
        return tokens


class SmallModel(nn.Module):
    """Tower, connector and LLM."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.image_token = config.image_token_id
        self.vision_tower = Tower(config.vision_config.architecture)
        self.multi_modal_projector = Connector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, maps: Tensor | None = None, **options: Any
    ) -> Any:
        """Put the image's tokens into the prompt, and run the LLM.

        ``maps`` are outputs of the tower, in place of ``pixel_values``.
        """
        embeds = self.language_model.embed_tokens(input_ids)
        if maps is None and pixel_values is not None:
            maps = self.vision_tower(pixel_values)
        if maps is not None:
            mask = (input_ids == self.image_token)[..., None]
            embeds = embeds.masked_scatter(mask, self.multi_modal_projector(maps).to(embeds.dtype))
        return self.language_model(inputs_embeds=embeds, **options)


class SmallForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The model as transformers loads it; input and output embeddings are the same."""

    config_class = SmallConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        self.model = SmallModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's embeddings."""
        embeddings: nn.Module = self.model.language_model.embed_tokens
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        head: nn.Module = self.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits, (B, L, V)."""
        output = self.model(
            input_ids,
            pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: past_key_values},
            **options,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, **{CACHE: getattr(output, CACHE)})


AutoConfig.register(SmallConfig.model_type, SmallConfig)
AutoModelForImageTextToText.register(SmallConfig, SmallForConditionalGeneration)
AutoProcessor.register(SmallConfig, LlavaProcessor)
