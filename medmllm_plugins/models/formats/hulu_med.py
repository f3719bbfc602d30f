"""Hulu-Med (Jiang et al., arXiv:2510.08668, 2025) as transformers' own VideoLLaMA 3, whose vision tower is the same.

A checkpoint holds the config of its LLM (Qwen2.5 or Qwen3) with that of its tower beside it, and names its tensors in
another way. Its own code is not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers as hf

from medmllm_plugins.errors import ModelError, one_line, shown
from medmllm_plugins.models.adapters import adapter_files
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.checkpoint import find_folder, open_weights, read_json
from medmllm_plugins.models.config_files import make_config, whole_number
from medmllm_plugins.models.families.video_llama_3 import VideoLlama3
from medmllm_plugins.models.formats.base_configs import NAVIT_TOWERS, base_config
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model, rename_by_table
from medmllm_plugins.models.formats.llm_tokenizer import load_tokenizer
from medmllm_plugins.models.native import Native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts
from medmllm_plugins.plugins.specs import PromptStyle

IMAGE = "<image>"
VIDEO = "<video>"
"""Hulu-Med writes ``<image>`` for a video's frames too; transformers' processor needs another word for it."""
_LLMS: Mapping[str, Any] = {"hulumed_qwen2": hf.Qwen2Config, "hulumed_qwen3": hf.Qwen3Config}
_RENAME = (
    (re.compile(r"^model\.vision_encoder\.(?:vision_encoder\.)?"), "model.vision_model."),
    (re.compile(r"^model\.mm_projector\.(?:readout\.)?"), "model.projector.readout."),
    (re.compile(r"^model\.(layers|norm|embed_tokens)\."), r"model.language_model.\1."),
)
# Where the checkpoint brings none: turns between im_start and im_end, an image on a line of its own.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load(options: LoadOptions) -> ChatModel:
    """Load a Hulu-Med checkpoint, with no network where the folder is whole.

    Raises:
        ModelError: there is no such checkpoint, it is of another format, or its weights do not fit its config.
        OptionError: the device, the attention kernel or another option is not available.
    """
    options.check()
    folder = find_folder(options.pretrained)
    raw = read_json(folder / "config.json")
    processor = _processor(folder, raw)
    config = read_config(folder, int(processor.image_token_id))
    weights = open_weights(folder)
    model = build_model(hf.VideoLlama3ForConditionalGeneration, config, weights, rename, options, left_out=FOREIGN)
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_generation_config(folder)
    family = VideoLlama3()
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt", ".jinja", ".model")]
    native = Native(
        model,
        processor,
        family,
        folder,
        (*files, *weights.files, *adapter_files(options)),
        untrained_parts(model, family),
    )
    return ChatModel(native, PromptStyle(system=options.system, template={"enable_thinking": False}))


def rename(name: str) -> str | None:
    """Return transformers' name for a tensor of a Hulu-Med checkpoint; ``None`` for rotary frequencies."""
    if name.endswith(".inv_freq"):
        return None
    return rename_by_table(name, _RENAME)


def read_config(folder: Path, image_token: int) -> hf.VideoLlama3Config:
    """Read the ``config.json`` of a Hulu-Med checkpoint; ``image_token`` is the id of the token that marks an image.

    Raises:
        ModelError: it is of another format, or describes a part that cannot be made.
    """
    source = folder / "config.json"
    raw = read_json(source)
    kind = str(raw.get("model_type"))
    if kind not in _LLMS:
        raise ModelError(
            f"{source}: expected a Hulu-Med checkpoint, with a `model_type` among {', '.join(_LLMS)}, got "
            f"{shown(kind)}."
        )
    nested = raw.get("vision_encoder_config")
    if not isinstance(nested, Mapping):
        name = str(raw.get("vision_encoder") or raw.get("mm_vision_encoder") or "")
        nested = base_config(name, NAVIT_TOWERS, folder)
    vision = {key: value for key, value in nested.items() if key not in ("model_type", "auto_map", "architectures")}
    skipped = ("model_type", "auto_map", "architectures", "vision_encoder", "vision_encoder_config")
    text = {key: value for key, value in raw.items() if key not in skipped and not key.startswith("mm_")}
    settings = {
        "vision_config": make_config(hf.VideoLlama3VisionConfig, vision, source),
        "text_config": make_config(_LLMS[kind], text, source),
        "image_token_id": image_token,
        "video_token_id": image_token,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
    }
    config: hf.VideoLlama3Config = make_config(hf.VideoLlama3Config, settings, source)
    return config


def read_generation_config(folder: Path) -> hf.GenerationConfig:
    """Read ``generation_config.json``.

    Raises:
        ModelError: it cannot be read, or holds settings that transformers does not take.
    """
    path = folder / "generation_config.json"
    read_json(path)
    try:
        config: hf.GenerationConfig = hf.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # settings of a wrong type are met with errors of many kinds
        raise ModelError(
            f"{path}: expected settings of generation, got {one_line(error)[:300]}. Fetch the file again."
        ) from error
    return config


def _processor(folder: Path, raw: Mapping[str, Any]) -> Any:
    tokenizer = load_tokenizer(folder)
    image_token = tokenizer.get_vocab().get(IMAGE)
    if image_token is None or image_token != raw.get("image_token_index", image_token):
        raise ModelError(
            f"{folder}: expected the token {IMAGE} with the number that config.json states "
            f"({raw.get('image_token_index')}), got {image_token}; is it Hulu-Med's own tokenizer?"
        )
    tokenizer.image_token = IMAGE
    tokenizer.video_token = VIDEO
    path = folder / "preprocessor_config.json"
    stated = read_json(path) if path.is_file() else {}
    patch = whole_number(stated, "patch_size", 14, path)
    settings = {key: stated[key] for key in ("image_mean", "image_std", "rescale_factor", "resample") if key in stated}
    image = hf.VideoLlama3ImageProcessorPil(
        patch_size=patch,
        merge_size=1,
        # Hulu-Med counts in tokens: a patch each.
        min_pixels=whole_number(stated, "min_tokens", 16, path) * patch**2,
        max_pixels=whole_number(stated, "max_tokens", 16384, path) * patch**2,
        **settings,
    )
    template = tokenizer.chat_template if IMAGE in str(tokenizer.chat_template) else _TEMPLATE
    video = hf.VideoLlama3VideoProcessor(patch_size=patch)
    kind: Any = hf.VideoLlama3Processor
    return kind(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template)
