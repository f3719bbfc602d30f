"""The models that benchmarks run on: the demo checkpoint, and random weights in the published model's shapes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipImageProcessorPil

from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.formats.medm_vl_config import MedMVLConfig, read_config
from medmllm_plugins.models.options import LoadOptions, resolve_device
from medmllm_plugins.prompts.wording import closed_set

QUESTION = closed_set("synthetic phantom image", phantoms.LABELS)
"""What med_cls_demo asks."""

# The config.json of MedM-VL-2D-3B-en in the format since October 2025, which names the parts and holds no shapes, so
# that the shapes are those which this package gives the published checkpoint.
_CONFIG_3B = {
    "model_type": "lvlm",
    "lvlm_llm_type": "qwen2",
    "lvlm_llm_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
    "lvlm_llm_max_length": 2048,
    "lvlm_encoder_image_type": "siglip",
    "lvlm_encoder_image_name_or_path": "google/siglip-base-patch16-256-multilingual",
    "lvlm_encoder_image_select_layer": -1,
    "lvlm_encoder_image_select_feature": "cls_patch",
    "lvlm_connector_image_type": "mlp",
    "lvlm_connector_image_name": "mlp2x_gelu",
}
_SEED = 0
_DEVIATION = 0.02  # of Qwen2's own initial weights
_HEADROOM = 1.2  # beside the weights, the KV cache and the activations


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure.

    Attributes:
        loaded: the model, as this package loads it.
        processor: its image processor, made anew for whoever does not go through ``loaded``.
        max_new_tokens: the most tokens of an answer.
        exact: whether its answers must be the same to the letter however they are batched. Where nothing ends an
            answer they need not be, since the work is the same: in bfloat16 a batch rounds otherwise than a single
            image, and random weights have many near ties.
    """

    loaded: medm_vl.MedMVL
    processor: Any
    max_new_tokens: int
    exact: bool


def images(count: int) -> list[Image.Image]:
    """The first ``count`` phantoms of the test fold, 64 x 64 pixels, RGB."""
    test = [index for index, record in enumerate(phantoms.records()) if record.fold == "test"]
    return [Image.fromarray(phantoms.phantom(index).image).convert("RGB") for index in test[:count]]


def checkpoint(pretrained: str, device: str) -> Subject:
    """A checkpoint in float32, whose answers end where the model ends them.

    Args:
        pretrained: ``"demo"``, or a folder.
        device: where it goes.
    """
    loaded = medm_vl.load(LoadOptions(pretrained, device=device, dtype="float32"))
    vision: Any = loaded.model.config.vision_config
    return Subject(loaded, siglip_processor(int(vision.image_size)), max_new_tokens=64, exact=True)


def random_3b(device: str) -> Subject:
    """Random weights in the shapes of MedM-VL-2D-3B, bfloat16 on CUDA and float32 on the CPU; see :func:`random`.

    Raises:
        ModelError: the machine has not the memory.
        OptionError: the device is not there.
    """
    where = resolve_device(device)
    return random(config_3b(), torch.bfloat16 if where.type == "cuda" else torch.float32, where)


def random(config: MedMVLConfig, dtype: torch.dtype, device: torch.device) -> Subject:
    """Random weights, made on the device.

    The tokenizer is the demo's. Where the vocabulary is larger, its tokens are few of those there are, but the model
    does the work of all. No token ends an answer, so that each has 16 tokens on either side.

    Raises:
        ModelError: the machine has not the memory.
    """
    tokenizer = load_qwen_tokenizer(demo_folder())
    model = unfilled(medm_vl.llava_config(config, tokenizer.get_vocab()[medm_vl.IMAGE_TOKEN]))
    _check_memory(model.num_parameters() * dtype.itemsize, device)
    fill(model, dtype, device)
    processor = siglip_processor(int(config.vision.image_size))  # type: ignore[arg-type]
    loaded = medm_vl.MedMVL(model, tokenizer, processor, config, ())
    loaded.eos_token_ids = (int(config.llm.vocab_size),)  # one past the last token, so never generated
    return Subject(loaded, processor, max_new_tokens=16, exact=False)


def siglip_processor(side: int) -> Any:
    """SigLIP's image processor to ``side`` pixels, as transformers makes it; the demo's settings are its defaults."""
    return SiglipImageProcessorPil(size={"height": side, "width": side}, do_convert_rgb=True)


def config_3b() -> MedMVLConfig:
    """The shapes of MedM-VL-2D-3B."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_CONFIG_3B), encoding="utf-8")
        return read_config(Path(folder))


def unfilled(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A model whose parameters take no memory yet; its buffers (rotary frequencies, positions) are real."""
    with init_empty_weights(include_buffers=False):
        model = LlavaForConditionalGeneration(config)
    # Emptying gave the output embeddings a tensor of their own.
    model.tie_weights()
    return model


def fill(model: LlavaForConditionalGeneration, dtype: torch.dtype, device: torch.device) -> None:
    """Put random weights into an unfilled model, made on the device: unit norms, no biases, the rest normal."""
    generator = torch.Generator(device).manual_seed(_SEED)
    state = {}
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if name.endswith("bias"):
            tensor.zero_()
        elif tensor.dim() == 1:
            tensor.fill_(1)
        else:
            tensor.normal_(std=_DEVIATION, generator=generator)
        state[name] = tensor
    # Not strict: the output embeddings are the input's, which named_parameters gives once.
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    # Buffers only: the parameters are there already. No dtype, which would round the rotary frequencies.
    model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]


def _check_memory(weights: int, device: torch.device) -> None:
    """Refuse a model that the device cannot hold, before it is made: a process out of memory is killed unheard."""
    if device.type == "cuda":
        found = torch.cuda.mem_get_info(device)[0]
    else:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = int(weights * _HEADROOM)
    if found < needed:
        raise ModelError(
            f"Expected {needed / 1e9:.1f} GB of memory on {device} for this model, but found {found / 1e9:.1f} GB: "
            "use `--size tiny`, or a larger machine."
        )
