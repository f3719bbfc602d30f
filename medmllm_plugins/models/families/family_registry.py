"""The architectures that are loaded natively, by the ``model_type`` of their config.json: built-in and of plugins."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.models.families.gemma3 import Gemma3
from medmllm_plugins.models.families.gemma4 import Gemma4
from medmllm_plugins.models.families.glm4v import Glm4V
from medmllm_plugins.models.families.idefics3 import Idefics3
from medmllm_plugins.models.families.internvl import InternVL
from medmllm_plugins.models.families.llava import Llava
from medmllm_plugins.models.families.llava_next import LlavaNext
from medmllm_plugins.models.families.llava_onevision import LlavaOnevision
from medmllm_plugins.models.families.mistral3 import Mistral3
from medmllm_plugins.models.families.paligemma import PaliGemma
from medmllm_plugins.models.families.qwen2_5_vl import Qwen25VL
from medmllm_plugins.models.families.qwen2_vl import Qwen2VL
from medmllm_plugins.models.families.qwen3_5 import Qwen35
from medmllm_plugins.models.families.qwen3_vl import Qwen3VL
from medmllm_plugins.models.families.qwen3_vl_moe import Qwen3VLMoe
from medmllm_plugins.models.families.smolvlm import SmolVLM
from medmllm_plugins.models.families.video_llama_3 import VideoLlama3
from medmllm_plugins.plugins.guard import PluginRaised, run_plugin_code
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.utils.import_by_name import import_by_name

FAMILIES: Final[Mapping[str, Family]] = {
    family.model_type: family
    for family in (
        *(Qwen2VL(), Qwen25VL(), Qwen3VL(), Qwen3VLMoe(), Qwen35(), Glm4V(), Gemma3(), Gemma4(), Llava()),
        *(LlavaNext(), LlavaOnevision(), PaliGemma(), InternVL(), VideoLlama3(), Idefics3(), SmolVLM(), Mistral3()),
    )
}


def find_family(name: object, source: object) -> Family:
    """Return the family of a ``model_type``, ours or a plugin's, or of a class ``"package.module:Class"``.

    Raises:
        ModelError: there is no such family.
    """
    if isinstance(name, str) and ":" in name:
        kind = import_by_name(name, ModelError)
        if not isinstance(kind, type) or not issubclass(kind, Family):
            raise ModelError(f"{source}: expected {name!r} to be a class derived from Family, got {shown(kind)}.")
        return kind()
    if (family := FAMILIES.get(str(name))) is not None:
        return family
    plugin_families, faults = _plugin_families()
    if (family := plugin_families.get(str(name))) is not None:
        return family
    raise ModelError(
        f"{source}: expected the architecture (`model_type` in config.json) to be one of "
        f"{', '.join([*FAMILIES, *plugin_families])}, got {shown(name)}. A plugin can add another one: see "
        f"docs/plugins.md.{''.join(f' {fault}' for fault in faults)}"
    )


def _plugin_families() -> tuple[dict[str, Family], list[str]]:
    """Import the families that models of plugins declare; return them by ``model_type``, and what failed."""
    families: dict[str, Family] = {}
    faults: list[str] = []
    for spec in get_manager().models().values():
        if ":" not in spec.family:
            continue
        package = spec.family.partition(":")[0].partition(".")[0]
        load = functools.partial(find_family, spec.family, spec.name)
        try:
            family = run_plugin_code(load, f"the family of model {spec.name}", package)
        except PluginRaised as error:
            faults.append(f"The family of {spec.name} cannot be used: {error}")
        else:
            families.setdefault(family.model_type, family)
    return families, faults
