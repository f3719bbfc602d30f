"""LoRA adapters in peft's format, merged into a model's weights while it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import ModelError, OptionError, one_line
from medmllm_plugins.models.checkpoint import find_folder
from medmllm_plugins.models.options import LoadOptions

_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")


def adapter_files(options: LoadOptions) -> tuple[Path, ...]:
    """Return the files of the adapter that options name, which belong to the model's fingerprint; none without one."""
    return () if options.peft is None else tuple(find_folder(options.peft) / name for name in _FILES)


def merge_adapter(model: Any, adapter: str, *, may_change_nothing: bool = False) -> Any:
    """Merge a LoRA adapter into the weights of a model, so that stages keep their names.

    Raises:
        ModelError: the folder has no adapter, or it does not fit the model.
        OptionError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise OptionError("peft= needs the package peft; pip install peft.") from error
    folder = find_folder(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: expected an adapter with an adapter_config.json, got none.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: expected adapter_model.safetensors, got none; pickled adapters are not read.")
    before = {name: value.detach().float().sum().item() for name, value in model.named_parameters()}
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:
        raise ModelError(f"{folder}: the adapter does not fit the model: {one_line(error)}") from error
    changed = [
        name for name, value in merged.named_parameters() if before.get(name) != value.detach().float().sum().item()
    ]
    if not changed and not may_change_nothing:
        raise ModelError(f"{folder}: the adapter changed no weight of the model; is it of another model?")
    return merged
