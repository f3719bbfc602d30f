"""A tiny model of any family, as the package loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_authors import hulu_med as write_hulu_med
from support.tiny_authors import internvl_chat as write_internvl_chat
from support.tiny_authors import old_llava as write_old_llava
from support.tiny_medm_vl import write_checkpoint, write_ct_checkpoint

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats import hulu_med, internvl_chat, medm_vl, original_llava
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.testing.tiny_families import FAMILIES, write_family

ALL = (*FAMILIES, "old_llava", "hulu_med", "internvl_chat", "medm_vl")
CT = "medm_vl_ct"
"""The model of volumes; it is not among :data:`ALL`."""
# Windows and multi-axis positions; features added in later blocks; tokens pooled from patches; tiles; a prompt read in
# both directions; authors' own code; the plain layout of LLaVA. The others repeat one of these.
_FAST = ("qwen2_5_vl", "qwen3_vl", "gemma3", "llava_next", "paligemma", "hulu_med", "medm_vl")
LAYOUTS = tuple(kind if kind in _FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in ALL)
"""All families, of which fast tests take one of each kind of layout."""


def write(kind: str, folder: Path) -> Path:
    """Write a checkpoint of a family to a folder."""
    if kind == "old_llava":
        return write_old_llava(folder, "llava_mistral")
    if kind == "hulu_med":
        return write_hulu_med(folder)
    if kind == "internvl_chat":
        return write_internvl_chat(folder)
    if kind == "medm_vl":
        write_checkpoint(folder, select_layer=-2)
        return folder
    return write_ct_checkpoint(folder) if kind == CT else write_family(kind, folder)


def open_model(kind: str, folder: Path, **options: Any) -> LoadedModel:
    """Load a checkpoint that :func:`write` wrote; by default on the CPU in float32."""
    settings = LoadOptions(str(folder), **{"device": "cpu", "dtype": "float32", **options})
    if kind == "old_llava":
        return original_llava.llava_med(settings)
    if kind == "hulu_med":
        return hulu_med.load(settings)
    if kind == "internvl_chat":
        return internvl_chat.load(settings)
    if kind == "medm_vl":
        return medm_vl.load(settings)
    return medm_vl.load_ct(settings) if kind == CT else ChatModel(open_native(settings))


def load(kind: str, folder: Path) -> LoadedModel:
    """Write a checkpoint of a family to a folder, and load it."""
    return open_model(kind, write(kind, folder))
