"""Models for code of one's own: opened by name as an evaluation does, or a transformers model that is in memory."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.models.families.family_registry import find_family
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.native import Native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import PromptStyle
from medmllm_plugins.utils.suggestions import did_you_mean


def open_model(name: str, pretrained: str, **options: Any) -> LoadedModel:
    """Open a model of this package or a plugin, as ``lmms-eval --model NAME --model_args pretrained=…`` does.

    Args:
        name: the model, as after ``--model``; ``medmllm_hf`` for any checkpoint of a known architecture.
        pretrained: a folder, a hub id or a size name; ``"demo"`` for the embedded demo of ``medm_vl``.
        options: further fields of :class:`~medmllm_plugins.models.options.LoadOptions`, such as ``device="cpu"``.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be loaded.
        OptionError: there is no such model, or an option is not available.

    Example:
        >>> from PIL import Image
        >>> from medmllm_plugins import open_model
        >>> model = open_model("medm_vl", "demo", device="cpu")
        >>> image = Image.new("RGB", (64, 64))
        >>> labels = ["round mass", "no finding"]
        >>> (answer,) = model.generate(["What is seen?"], [image], max_new_tokens=8, labels=labels)
        >>> len(answer.scores)
        2
    """
    specs = get_manager().models()
    spec = specs.get(name)
    if spec is None or spec.wrapper is not None:
        hint = did_you_mean(name, specs) or "`medmllm models` lists all."
        raise OptionError(f"Expected a model that this package or a plugin loads, got {name!r}. {hint}")
    if unknown := sorted(set(options) - set(LoadOptions.__slots__)):
        raise OptionError(f"{name}: expected options among {', '.join(LoadOptions.__slots__)}, got {unknown}.")
    return load_model(spec, LoadOptions(pretrained, **options))


def wrap_model(
    model: PreTrainedModel, processor: Any, *, family: str | Family = "", prompt_style: PromptStyle | None = None
) -> LoadedModel:
    """Return a transformers model that is in memory as this package's functions take it.

    The model is set to evaluation mode and its parameters are frozen; its weights stay as they are.

    Args:
        model: the model, of a known architecture.
        processor: its processor, with tokenizer and chat template.
        family: the architecture: a ``model_type``, ``"package.module:Class"`` or a :class:`Family`; by default that of
            the model's config.
        prompt_style: how the model is prompted.

    Raises:
        ModelError: the architecture is not known, or the processor has no tokenizer or no template for images.

    Example:
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor  # doctest: +SKIP
        >>> folder = "checkpoints/qwen2.5-vl-7b-radiology"  # doctest: +SKIP
        >>> model = AutoModelForImageTextToText.from_pretrained(folder)  # doctest: +SKIP
        >>> loaded = wrap_model(model, AutoProcessor.from_pretrained(folder))  # doctest: +SKIP
    """
    if getattr(processor, "tokenizer", None) is None:
        raise ModelError(
            f"Expected the model's processor, with a tokenizer and an image processor, got {type(processor).__name__}. "
            "Load it with AutoProcessor.from_pretrained."
        )
    kind = family if isinstance(family, Family) else find_family(family or model.config.model_type, "wrap_model")
    model.train(False).requires_grad_(False)
    native = Native(model, processor, kind, Path(model.name_or_path or "model"), (), untrained_parts(model, kind))
    return WrappedModel(native, prompt_style)


class WrappedModel(ChatModel):
    """A transformers model that was made outside of this package."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, types and values of all weights; differs from that of a checkpoint's files."""
        total = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            content = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode() + content)
        return total.hexdigest()
