"""Declarations of images that a table lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec


def table_spec(
    folder: Path | None, options: Mapping[str, Any], classes: Sequence[str] = ("benign", "malignant"), **more: Any
) -> DatasetSpec:
    """Declare a set of images whose table is among the options; ``more`` are further keys."""
    declared = {
        "name": "own",
        "title": "Own",
        "layout": "table",
        **({} if folder is None else {"folder": str(folder)}),
        "modality": "image",
        "classes": {name: [] for name in classes},
        "options": dict(options),
    }
    return parse_spec({**declared, **more}, "own.yaml")
