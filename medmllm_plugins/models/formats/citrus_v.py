"""Citrus-V (Wang et al., arXiv:2509.19090, 2025) as transformers' own Qwen2.5-VL, which writes its answers.

A checkpoint holds a Qwen2.5-VL beside a SAM 2 that draws a mask where the answer names one, and a projector between
them. Neither takes part in the text, so that their tensors are left aside. The checkpoint's own code is not run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import transformers as hf

from medmllm_plugins.errors import ModelError, one_line, shown
from medmllm_plugins.models.adapters import adapter_files
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.checkpoint import find_folder, open_weights, read_json
from medmllm_plugins.models.config_files import make_config
from medmllm_plugins.models.families.qwen2_5_vl import Qwen25VL
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model, rename_by_table
from medmllm_plugins.models.formats.hulu_med import read_generation_config
from medmllm_plugins.models.native import Native, open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts
from medmllm_plugins.plugins.specs import PromptStyle

logger = logging.getLogger(__name__)

MODEL_TYPE: Final = "citrus_v"
SEGMENTATION: Final = ("grounding_encoder.", "seg_projector.")
"""Beginnings of the names of tensors that make masks: SAM 2, and what maps the LLM's states to its prompts."""
_TOKENS: Final = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Either way of naming Qwen2.5-VL's parts that transformers has had.
_RENAME = (
    (re.compile(r"^mllm\.model\.(visual|language_model)\."), r"model.\1."),
    (re.compile(r"^mllm\.visual\."), "model.visual."),
    (re.compile(r"^mllm\.model\.(layers|norm|embed_tokens)\."), r"model.language_model.\1."),
    (re.compile(r"^mllm\.lm_head\."), "lm_head."),
)


def load(options: LoadOptions) -> ChatModel:
    """Load the language and vision weights of a Citrus-V checkpoint, or the Qwen2.5-VL that it was tuned from.

    Raises:
        ModelError: there is no such checkpoint, it is of another format, or its weights do not fit its config.
        OptionError: the device, the attention kernel or another option is not available.
    """
    options.check()
    folder, family = find_folder(options.pretrained), Qwen25VL()
    style = PromptStyle(system=options.system)
    if read_json(folder / "config.json").get("model_type") == family.model_type:
        return ChatModel(open_native(options, family), style)
    config = read_config(folder)
    weights, processor = open_weights(folder), _processor(folder)
    model = build_model(hf.Qwen2_5_VLForConditionalGeneration, config, weights, rename, options, left_out=FOREIGN)
    if count := sum(name.startswith(SEGMENTATION) for name in weights.where):
        logger.warning(
            f"{folder}: {count} tensors of the segmentation branch ({', '.join(name[:-1] for name in SEGMENTATION)}) "
            "are left aside; answers are text without masks."
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_generation_config(folder)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt", ".jinja", ".model")]
    files += [*weights.files, *adapter_files(options)]
    warnings = untrained_parts(model, family)
    return ChatModel(Native(model, processor, family, folder, tuple(files), warnings), style)


def rename(name: str) -> str | None:
    """Return transformers' name for a tensor of a Citrus-V checkpoint; ``None`` for those that make masks."""
    return None if name.startswith(SEGMENTATION) else rename_by_table(name, _RENAME)


def read_config(folder: Path) -> hf.Qwen2_5_VLConfig:
    """Read the ``config.json`` of a Citrus-V checkpoint: the LLM's settings, at its top or as ``text_config``.

    Raises:
        ModelError: it is of another format, or describes a part that cannot be made.
    """
    source = folder / "config.json"
    raw = read_json(source)
    if raw.get("model_type") != MODEL_TYPE:
        raise ModelError(
            f"{source}: expected a Citrus-V checkpoint, with the `model_type` {MODEL_TYPE}, got "
            f"{shown(raw.get('model_type'))}; use --model medmllm_hf for a checkpoint in transformers' format."
        )
    vision = _nested(raw, "vision_config", source)
    if vision is None:
        raise ModelError(f"{source}: expected the vision tower's settings as `vision_config`, got none.")
    text = _nested(raw, "text_config", source)
    if text is None:
        text = {key: value for key, value in raw.items() if not isinstance(value, Mapping) or key.startswith("rope")}
    skipped = ("model_type", "auto_map", "architectures", "torch_dtype", "dtype", "transformers_version")
    settings: dict[str, Any] = {
        "text_config": {key: value for key, value in text.items() if key not in (*skipped, *_TOKENS)},
        "vision_config": {key: value for key, value in vision.items() if key not in skipped},
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        **{key: raw[key] for key in _TOKENS if key in raw},
    }
    config: hf.Qwen2_5_VLConfig = make_config(hf.Qwen2_5_VLConfig, settings, source)
    return config


def _nested(raw: Mapping[str, Any], key: str, source: Path) -> Mapping[str, Any] | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ModelError(f"{source}: expected `{key}` to be an object, got {shown(value)}. Fetch the file again.")
    return value


def _processor(folder: Path) -> Any:
    try:
        return hf.Qwen2_5_VLProcessor.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # missing and broken files are met with errors of a dozen types
        raise ModelError(
            f"{folder}: expected the tokenizer, image processor and chat template of Qwen2.5-VL, got "
            f"{one_line(error)}. Fetch the files that are missing."
        ) from error
