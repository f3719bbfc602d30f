"""A tiny model of any family, as the package loads it."""

from __future__ import annotations

from pathlib import Path

from support.tiny_authors import hulu_med as write_hulu_med
from support.tiny_authors import old_llava as write_old_llava
from support.tiny_families import FAMILIES, write_family
from support.tiny_medm_vl import write_checkpoint

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats import hulu_med, medm_vl, original_llava
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions

ALL = (*FAMILIES, "old_llava", "hulu_med", "medm_vl")


def load(kind: str, folder: Path) -> LoadedModel:
    """Write a checkpoint of a family to a folder, and load it."""
    options = LoadOptions(str(folder), device="cpu", dtype="float32")
    if kind == "old_llava":
        write_old_llava(folder, "llava_mistral")
        return original_llava.llava_med(options)
    if kind == "hulu_med":
        write_hulu_med(folder)
        return hulu_med.load(options)
    if kind == "medm_vl":
        write_checkpoint(folder, select_layer=-2)
        return medm_vl.load(options)
    return ChatModel(open_native(LoadOptions(str(write_family(kind, folder)), device="cpu")))
