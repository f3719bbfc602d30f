"""Checkpoints of other families than the demo's that really look at the image, trained once in a test session."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

KINDS = ("qwen2_5_vl", "gemma3")

_TRAINED: dict[str, Path] = {}


@cache
def train_families() -> Any:
    """The script, loaded by its path: other packages install a module ``examples`` too."""
    path = Path(__file__).parents[2] / "examples" / "train_families.py"
    spec = importlib.util.spec_from_file_location("train_families", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_families"] = module  # dataclasses look their module up
    sys.path.append(str(path.parent))  # as when it is started as a script, which imports a module beside it
    spec.loader.exec_module(module)
    return module


def trained_family(kind: str, parent_folder: Path) -> Path:
    """Folder of a trained checkpoint, which is made by the first who asks and shared by all others: change a copy.

    Args:
        kind: one of :data:`KINDS`.
        parent_folder: a folder that lives as long as the session, such as ``tmp_path_factory.getbasetemp()``; that of
            the first who asks counts. Training takes about four minutes on one core.
    """
    if kind not in _TRAINED:
        folder = parent_folder / f"trained-{kind}"
        train_families().train(kind, folder)
        _TRAINED[kind] = folder
    return _TRAINED[kind]
