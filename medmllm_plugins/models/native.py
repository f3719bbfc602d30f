"""Checkpoints in transformers' own format, opened from a local folder; faults are reported before weights are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from medmllm_plugins.errors import ModelError, OptionError, one_line, shown
from medmllm_plugins.models.adapters import adapter_files, merge_adapter
from medmllm_plugins.models.checkpoint import find_folder, open_weights, read_json, some
from medmllm_plugins.models.config_files import check_bounds
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.models.families.family_registry import find_family
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts

AUTHORS_FORMATS: Final[Mapping[str, str]] = {
    "citrus_v": "citrus_v",
    "internvl_chat": "internvl_chat",
    "hulumed_qwen2": "hulu_med",
    "hulumed_qwen3": "hulu_med",
    "llava_qwen2": "huatuogpt_vision",
    "llava_mistral": "llava_med",
    "lvlm": "medm_vl",
}
"""The model that reads a checkpoint in its authors' format, by ``model_type``."""


@dataclass(frozen=True, slots=True)
class Native:
    """A checkpoint in memory.

    Attributes:
        model: the transformers model, in evaluation mode, its parameters frozen.
        weight_warnings: see :func:`medmllm_plugins.models.weight_warnings.untrained_parts`.
    """

    model: PreTrainedModel
    processor: Any
    family: Family
    folder: Path
    files: tuple[Path, ...]
    weight_warnings: tuple[str, ...]


def open_native(options: LoadOptions, family: Family | None = None) -> Native:
    """Load a checkpoint of an architecture that transformers knows; it must be that of ``family``, if one is given.

    Raises:
        ModelError: there is no such checkpoint; it is of another architecture, needs its own code, has no safetensors
            weights, or these do not fit the model that its config.json describes.
        OptionError: the device, the attention kernel or the quantisation is not available.
    """
    options.check()
    folder = find_folder(options.pretrained)
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if (reader := AUTHORS_FORMATS.get(str(kind))) is not None and options.trust_remote_code is None:
        raise ModelError(
            f"{folder}: expected a checkpoint in transformers' format, got its authors' own ({kind}). Use --model "
            f"{reader}, which reads it without running its code."
        )
    if (code := raw.get("auto_map")) and options.trust_remote_code != options.pretrained:
        classes = some(map(str, code.values())) if isinstance(code, dict) else shown(code)
        raise ModelError(
            f"{folder}: the checkpoint brings code of its own ({classes}), which is not run by default. If "
            f"you trust it, name it: trust_remote_code={options.pretrained}."
        )
    if family is not None and kind != family.model_type:
        raise ModelError(
            f"{folder}: expected a checkpoint of architecture {family.model_type}, got {shown(kind)}; use "
            "--model medmllm_hf for any checkpoint of a known architecture."
        )
    family = family or find_family(kind, folder)
    check_bounds(raw, folder / "config.json")
    if missing := [name for name in family.needs if importlib.util.find_spec(name) is None]:
        raise ModelError(f"{family.title} needs the packages {missing}; pip install {' '.join(missing)}.")
    weights = open_weights(folder)
    processor = _processor(folder)
    model = _model(folder, options)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt", ".jinja", ".model")]
    files += [*weights.files, *adapter_files(options)]
    return Native(model, processor, family, folder, tuple(files), untrained_parts(model, family))


def quantisation(options: LoadOptions) -> Any:
    """Return the quantisation config that the options ask for; ``None`` for none.

    Raises:
        OptionError: bitsandbytes is missing, or the device is not one that it serves.
    """
    if options.load_in is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(f"load_in={options.load_in} needs the package bitsandbytes; pip install bitsandbytes.")
    if options.torch_device.type != "cuda":
        raise OptionError(f"load_in={options.load_in} needs a CUDA device, got {options.torch_device}.")
    from transformers import BitsAndBytesConfig

    if options.load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options.torch_dtype
    )


def _processor(folder: Path) -> Any:
    try:
        return AutoProcessor.from_pretrained(str(folder), local_files_only=True)  # type: ignore[no-untyped-call]
    # Missing and broken files are met with errors of a dozen types.
    except Exception as error:
        raise ModelError(
            f"{folder}: expected a tokenizer, an image processor and a chat template, got {one_line(error)}. Is it a "
            "whole checkpoint folder? Fetch the files that are missing."
        ) from error


def _model(folder: Path, options: LoadOptions) -> PreTrainedModel:
    settings: dict[str, Any] = {"dtype": options.torch_dtype}
    if (bits := quantisation(options)) is not None:
        settings["quantization_config"] = bits
    if options.device_map is not None:
        settings["device_map"] = options.device_map
    elif bits is not None:
        settings["device_map"] = {"": options.torch_device}
    trusted = options.trust_remote_code == options.pretrained
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trusted)
        if options.attn_implementation is not None:
            settings["attn_implementation"] = attention_kernels(config, options.attn_implementation)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
            **settings,
        )
    except ImportError as error:
        raise OptionError(f"{folder} cannot be loaded with these options: {one_line(error)}") from error
    except Exception as error:
        # A config that lies about shapes is met with errors of many types; torch's own text says which tensor.
        raise ModelError(f"{folder}: the weights cannot be loaded: {one_line(error)}") from error
    model, report = loaded
    problems = {
        what: sorted(map(str, report.get(f"{what}_keys") or ())) for what in ("missing", "unexpected", "mismatched")
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names)
        raise ModelError(
            f"{folder}: the weights do not fit the model that config.json describes: {listed}. Parts without weights "
            "would keep random values; is it a whole checkpoint, or an adapter (peft=)?"
        )
    if options.device_map is None and quantisation(options) is None:
        model.to(options.torch_device)
    if options.peft is not None:
        model = merge_adapter(model, options.peft)
    model.requires_grad_(False)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def attention_kernels(config: Any, name: str) -> str | dict[str, str]:
    """Return the attention kernel of each part of a model; that of an audio tower, which is never run, stays as it is.

    An audio tower (Gemma 4) has one kernel, and refuses others for the whole model.
    """
    if getattr(config, "audio_config", None) is None:
        return name
    return {part: name for part in ("", *config.sub_configs) if part != "audio_config"}


def eos_tokens(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """Return every token that ends an answer: those of the generation config, and the tokenizer's.

    Raises:
        ModelError: neither names one.
    """
    stated = getattr(model.generation_config, "eos_token_id", None)
    several = stated if isinstance(stated, list) else [] if stated is None else [stated]
    tokens = {int(token) for token in [*several, tokenizer.eos_token_id] if token is not None}
    if not tokens:
        raise ModelError("The checkpoint names no token that ends an answer (eos_token_id).")
    return tuple(sorted(tokens))


def longest_input(model: PreTrainedModel) -> int:
    """Return the most tokens that the LLM takes."""
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or torch.iinfo(torch.int32).max)
