"""A new architecture (a small ConvNet, an MLP connector and a Llama) with its family for medmllm-plugins.

The tower returns feature maps, (images, channels, rows, columns), whose resolution differs between layers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from medmllm_plugins import Family
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

Inputs = Mapping[str, Tensor]
IntArray = npt.NDArray[np.int64]
STRIDES = (4, 2, 1)
"""Strides of the tower's convolutions: a patch is 4 pixels wide, a cell of the later maps two patches."""
POOLED = 2
"""Side of an image token in cells of the last map."""


class ConvFamily(Family):
    """Names of the layers, and the patches that each of their rows covers."""

    title = "ConvNet of mine"
    model_type = "convnet_of_mine"
    vision_blocks = "model.tower.layers"
    vision_norm = None
    connector = "model.projector"

    def to_rows(self, layer: str, output: Tensor) -> Tensor:
        """Put the channels of a feature map last."""
        return output if layer == "connector" else output.movedim(1, -1)

    def from_rows(self, layer: str, rows: Tensor) -> Tensor:
        """Put the channels of a feature map back."""
        return rows if layer == "connector" else rows.movedim(-1, 1)

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patches of each cell of a layer's map."""
        return self.merge_blocks(self.patches_of_tiles(model, inputs), 1 if layer == "vision.00" else STRIDES[1])

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the side of an image token in patches."""
        return STRIDES[1] * POOLED

    @classmethod
    def write_tiny_checkpoint(cls, folder: Path) -> None:
        """Write a checkpoint with random weights, for the tests."""
        write_tiny_checkpoint(folder)


class VisionConfig(PretrainedConfig):
    """Configuration of the tower."""

    model_type = "convnet_of_mine_vision"
    image_size: int = 64
    patch_size: int = STRIDES[0]
    hidden_size: int = 16


class ConvConfig(PretrainedConfig):
    """Configuration of the whole model."""

    model_type = "convnet_of_mine"
    sub_configs = {"vision_config": VisionConfig, "text_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, vision_config: Any = None, text_config: Any = None, image_token_id: int = 0, **more: Any):
        self.vision_config = VisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config
        self.image_token_id = image_token_id
        super().__init__(**more)


class ConvTower(nn.Module):
    """Convolutions, each followed by a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [3, *[width] * len(STRIDES)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, max(3, stride), stride, padding=int(stride < 3)), nn.GELU())
            for before, after, stride in zip(channels[:-1], channels[1:], STRIDES, strict=True)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, H, W) to (images, channels, rows, columns)."""
        for layer in self.layers:
            pixels = layer(pixels)
        return pixels


class Projector(nn.Module):
    """Average pooling to tokens, and an MLP to the LLM's width."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, rows, columns) to (images, tokens, D)."""
        tokens = avg_pool2d(maps, POOLED).flatten(2).transpose(1, 2)
        return self.linear_2(gelu(self.linear_1(tokens)))


class ConvModel(nn.Module):
    """Tower, connector and LLM."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.image_token = config.image_token_id
        self.tower = ConvTower(config.vision_config.hidden_size)
        self.projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None, **options: Any) -> Any:
        """Put the image's tokens into the prompt, and run the LLM."""
        embeds = self.language_model.embed_tokens(input_ids)
        if pixel_values is not None:
            mask = (input_ids == self.image_token)[..., None]
            embeds = embeds.masked_scatter(mask, self.projector(self.tower(pixel_values)).to(embeds.dtype))
        return self.language_model(inputs_embeds=embeds, **options)


class ConvForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The model as transformers loads it."""

    config_class = ConvConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.model = ConvModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

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
            past_key_values=past_key_values,
            **options,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


def write_tiny_checkpoint(folder: Path) -> None:
    """Write a model of two layers with random weights, and its processor for images of 64 x 64 pixels."""
    from medmllm_plugins.testing import tiny_checkpoints

    words = tiny_checkpoints.tokenizer(["<image>"], image_token="<image>")
    config = ConvConfig(
        vision_config=VisionConfig(),
        text_config=LlamaConfig(**tiny_checkpoints.TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        eos_token_id=1,
        pad_token_id=0,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False),
        tokenizer=words,
        patch_size=STRIDES[0] * STRIDES[1] * POOLED,
        vision_feature_select_strategy="full",
        chat_template=tiny_checkpoints.CHATML.replace("SLOT", "<image>"),
    )
    tiny_checkpoints.write_checkpoint(ConvForConditionalGeneration(config), processor, folder)


AutoConfig.register(ConvConfig.model_type, ConvConfig)
AutoModelForImageTextToText.register(ConvConfig, ConvForConditionalGeneration)
AutoProcessor.register(ConvConfig, LlavaProcessor)
