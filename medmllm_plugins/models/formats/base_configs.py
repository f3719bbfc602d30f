"""Shapes of the language models and vision towers that checkpoints refer to by name.

A MedM-VL checkpoint written since October 2025 names its parts and holds no shapes. The published ones are in
``base_configs.json``, so that no network is needed; every tensor's shape is checked against the weights at load, so a
wrong entry cannot go unnoticed. Source: the ``config.json`` of each repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.checkpoint import read_json

_PUBLISHED = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
LLMS: Mapping[str, dict[str, Any]] = _PUBLISHED["llms"]
CLIP_TOWERS: Mapping[str, dict[str, Any]] = _PUBLISHED["clip_towers"]
NAVIT_TOWERS: Mapping[str, dict[str, Any]] = _PUBLISHED["navit_towers"]
"""SigLIP's largest tower with rotary positions, as VideoLLaMA 3 and Hulu-Med have it."""
VISION_TOWERS: Mapping[str, dict[str, Any]] = _PUBLISHED["vision_towers"]
LLM_KEYS: tuple[str, ...] = tuple(_PUBLISHED["llm_keys"])
"""Settings that decide an LLM's shape and arithmetic; nested configs of MedM-VL hold those of generation and loading
too, which transformers 5 would take for more than they are."""
VISION_KEYS: tuple[str, ...] = tuple(_PUBLISHED["vision_keys"])


def published_name(name: str, table: Mapping[str, Any]) -> str | None:
    """Return the table's name for ``name``, which may be a path on the authors' machine with the same ending."""
    ends = {known.rsplit("/", 1)[1]: known for known in table}
    return name if name in table else ends.get(name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])


def named_folder(name: str, checkpoint: Path) -> Path | None:
    """Return the local folder that ``name`` means, absolute or relative to the checkpoint, or ``None``."""
    try:
        folder = checkpoint / Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a home folder of nobody
        return None


def base_config(name: str, table: Mapping[str, dict[str, Any]], checkpoint: Path) -> dict[str, Any]:
    """Return the shapes of a part that a checkpoint refers to by name, from a local folder or the table.

    Raises:
        ModelError: neither knows the name.
    """
    folder = named_folder(name, checkpoint)
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    known = published_name(name, table)
    if known is None:
        raise ModelError(
            f"The checkpoint in {checkpoint} builds on {shown(name)}, whose shapes it does not hold. Expected one of "
            f"{', '.join(table)}, or a local folder (absolute, or relative to the checkpoint) with its config.json."
        )
    return dict(table[known])
