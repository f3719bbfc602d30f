"""A tiny model of any family, as the package loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
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
# Windows and multi-axis positions; features added in later blocks; tokens pooled from patches; tiles; a prompt read in
# both directions; authors' own code; the plain layout of LLaVA. The others repeat one of these.
_FAST = ("qwen2_5_vl", "qwen3_vl", "gemma3", "llava_next", "paligemma", "hulu_med", "medm_vl")
LAYOUTS = tuple(kind if kind in _FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in ALL)
"""All families, of which fast tests take one of each kind of layout."""


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
