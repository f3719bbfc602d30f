"""The architectures this package loads natively, by the ``model_type`` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.models.families.gemma3 import Gemma3
from medmllm_plugins.models.families.idefics3 import Idefics3
from medmllm_plugins.models.families.internvl import InternVL
from medmllm_plugins.models.families.llava import Llava
from medmllm_plugins.models.families.llava_next import LlavaNext
from medmllm_plugins.models.families.paligemma import PaliGemma
from medmllm_plugins.models.families.qwen2_5_vl import Qwen25VL
from medmllm_plugins.models.families.qwen2_vl import Qwen2VL
from medmllm_plugins.models.families.qwen3_vl import Qwen3VL
from medmllm_plugins.models.families.smolvlm import SmolVLM
from medmllm_plugins.models.families.video_llama_3 import VideoLlama3
from medmllm_plugins.utils.import_by_name import import_by_name

FAMILIES: Final[Mapping[str, Family]] = {
    family.model_type: family
    for family in (
        Qwen2VL(),
        Qwen25VL(),
        Qwen3VL(),
        Gemma3(),
        Llava(),
        LlavaNext(),
        PaliGemma(),
        InternVL(),
        VideoLlama3(),
        Idefics3(),
        SmolVLM(),
    )
}


def find_family(name: object, source: object) -> Family:
    """Return the family of a ``model_type``, or of a plugin's ``"package.module:Class"``; ``source`` is for messages.

    Raises:
        ModelError: there is no such family.
    """
    if isinstance(name, str) and ":" in name:
        kind = import_by_name(name, ModelError)
        if not isinstance(kind, type) or not issubclass(kind, Family):
            raise ModelError(f"{source}: expected {name!r} to be a class derived from Family, got {shown(kind)}.")
        return kind()
    family = FAMILIES.get(str(name))
    if family is None:
        raise ModelError(
            f"{source}: expected the architecture (`model_type` in config.json) to be one of {', '.join(FAMILIES)}, "
            f"got {shown(name)}. A plugin can add another one: see docs/plugins.md."
        )
    return family
