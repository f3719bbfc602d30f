"""The architectures this package serves natively, by the ``model_type`` of their config.json, and their stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from medmllm_plugins.errors import ModelError, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the stages of an architecture stand, as names below the transformers model.

    Attributes:
        title: name for people.
        vision_blocks: the list of the vision tower's blocks.
        vision_norm: the norm behind the last of them; ``None`` where it is a part of the connector.
        connector: the module whose output takes the place of the image tokens' embeddings.
        embed: the LLM's token embeddings.
        llm_blocks: the list of the LLM's blocks.
        llm_norm: the norm behind the last of them.
        head: the output embeddings.
        grid: whether the tower's patches stand in one flat list, as many as each image's grid says; otherwise a row
            for each tile.
        needs: packages beyond this one's own that its processor needs.
    """

    title: str
    vision_blocks: str
    vision_norm: str | None
    connector: str
    embed: str = "model.language_model.embed_tokens"
    llm_blocks: str = "model.language_model.layers"
    llm_norm: str = "model.language_model.norm"
    head: str = "lm_head"
    grid: bool = False
    needs: tuple[str, ...] = ()


def _idefics(title: str, needs: tuple[str, ...] = ()) -> Family:
    return Family(
        title=title,
        vision_blocks="model.vision_model.encoder.layers",
        vision_norm="model.vision_model.post_layernorm",
        connector="model.connector",
        embed="model.text_model.embed_tokens",
        llm_blocks="model.text_model.layers",
        llm_norm="model.text_model.norm",
        needs=needs,
    )


def _qwen(title: str) -> Family:
    return Family(
        title=title, vision_blocks="model.visual.blocks", vision_norm=None, connector="model.visual.merger", grid=True
    )


def _projected(title: str, **changes: Any) -> Family:
    known = {
        "vision_blocks": "model.vision_tower.encoder.layers",
        "vision_norm": "model.vision_tower.post_layernorm",
        "connector": "model.multi_modal_projector",
    }
    return Family(title=title, **{**known, **changes})


FAMILIES: Final[Mapping[str, Family]] = {
    "qwen2_vl": _qwen("Qwen2-VL"),
    "qwen2_5_vl": _qwen("Qwen2.5-VL"),
    "qwen3_vl": _qwen("Qwen3-VL"),
    "gemma3": _projected("Gemma 3"),
    "llava": _projected("LLaVA"),
    "llava_next": _projected("LLaVA-NeXT"),
    "paligemma": _projected("PaliGemma"),
    "internvl": _projected(
        "InternVL", vision_blocks="model.vision_tower.encoder.layer", vision_norm="model.vision_tower.layernorm"
    ),
    "video_llama_3": Family(
        title="VideoLLaMA 3",
        vision_blocks="model.vision_model.encoder.layers",
        vision_norm="model.vision_model.post_layernorm",
        connector="model.projector",
        grid=True,
    ),
    "idefics3": _idefics("Idefics 3"),
    "smolvlm": _idefics("SmolVLM", needs=("num2words",)),
}


def family(model_type: object, where: object) -> Family:
    """The family of a checkpoint.

    Args:
        model_type: as its config.json says.
        where: the checkpoint, for messages.

    Raises:
        ModelError: this package does not know it.
    """
    found = FAMILIES.get(str(model_type))
    if found is None:
        raise ModelError(
            f"{where}: expected the architecture (`model_type` in config.json) to be one of {', '.join(FAMILIES)}, "
            f"found {shown(model_type)}. A plugin can add a model of another one: see docs/plugins.md."
        )
    return found


def stage(model: nn.Module, name: str) -> nn.Module:
    """The module of that name.

    Raises:
        ModelError: the model has none, so that this version of transformers has another layout than the table.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__}: expected a module {name!r}, found none ({error}); this version of transformers "
            "lays the model out differently."
        ) from error
