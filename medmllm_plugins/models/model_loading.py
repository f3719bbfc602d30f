"""From a model's declaration to the model in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.checkpoint import resolve_size
from medmllm_plugins.models.families.family_registry import find_family
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.repairs.repair_folder import load_repaired
from medmllm_plugins.plugins.specs import ModelSpec
from medmllm_plugins.utils.import_by_name import import_by_name


def load_model(spec: ModelSpec, options: LoadOptions) -> LoadedModel:
    """Load a checkpoint of a declared model, with a repair where the options name one.

    A model with a loader of its own is loaded by that, any other as transformers does; ``options.pretrained`` may be a
    size name.

    Raises:
        ModelError: there is no such checkpoint, it does not fit the declaration, or cannot be loaded.
        OptionError: the device, the attention kernel or another option is not available.
    """
    loaded = _load(spec, options)
    return loaded if options.repair is None else load_repaired(loaded, Path(options.repair).expanduser())


def _load(spec: ModelSpec, options: LoadOptions) -> LoadedModel:
    name = resolve_size(options.pretrained, spec.sizes)
    trusted = name if options.trust_remote_code is not None else None
    options = replace(options, pretrained=name, trust_remote_code=trusted)
    family = find_family(spec.family, spec.name) if spec.family else None
    if spec.loader is None:
        style = replace(spec.prompt_style, system=options.system or spec.prompt_style.system)
        return ChatModel(open_native(options, family), style)
    loaded = import_by_name(spec.loader, ModelError)(options)
    if not isinstance(loaded, LoadedModel):
        raise ModelError(f"{spec.name}: expected {spec.loader} to return a LoadedModel, got {type(loaded).__name__}.")
    if family is not None:
        loaded.family = family
    return loaded
