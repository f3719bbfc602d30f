"""Reading of the arguments that a model is given on the host's command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.host.flags import parse_pairs
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import ModelSpec

MEMORY: Final = "memory"
"""Both twins are loaded at once."""
BASE: Final = "base"
DISK: Final = "disk"
"""Twins are loaded in turn; their states are kept in files."""


def merged(model: str, text: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's arguments: those of ``--model_args`` and those that the host has from flags of their own.

    ``text`` is the value of ``--model_args``; ``flags`` hold ``None`` for a flag that is not given.

    Raises:
        OptionError: the text is no list of pairs, or both name an argument with different values.
    """
    named = parse_pairs("model_args", text)
    added = {name: value for name, value in flags.items() if value is not None}
    # The host always hands over the flag's default, 1; what a user writes is a text.
    if type(added.get("batch_size")) is int and added["batch_size"] == 1:
        added["batch_size"] = named.get("batch_size", 1)
    for name in sorted(set(named) & set(added)):
        if str(named[name]) != str(added[name]):
            raise OptionError(
                f"{model}: expected one value of {name}, got {shown(named[name])} in --model_args and "
                f"{shown(added[name])} from --{name}. Leave one of them out."
            )
    return {**named, **added}


def run_folder(run_dir: str | None) -> str | None:
    """Return the path of a folder that exists or can be made; ``None`` if none was named.

    Raises:
        OptionError: a file is in the way.
    """
    if run_dir is None:
        return None
    path = Path(str(run_dir)).expanduser().absolute()
    if not str(run_dir) or any(folder.exists() and not folder.is_dir() for folder in (path, *path.parents)):
        raise OptionError(f"Expected argument `run_dir` to be a folder or a path to make one at, got {run_dir!r}.")
    return str(path)


def twin_options(
    spec: ModelSpec, options: LoadOptions, twin: str | None, peft: str | None, states: str
) -> LoadOptions | None:
    """Return how the twin of a model is loaded; ``None`` without one.

    It is on the same device and of the same type; adapter, repair and quantisation are those of the model alone.
    :data:`BASE` stands for the general model that ``spec`` was tuned from.

    Raises:
        OptionError: an adapter, or where states are kept, is named without a twin; or ``states`` is neither
            :data:`MEMORY` nor :data:`DISK`; or the base of the checkpoint is not known.
    """
    if states not in (MEMORY, DISK):
        raise OptionError(f"Expected argument `twin_states` to be {MEMORY} or {DISK}, got {states!r}.")
    if twin is None:
        for name, missing in (("twin_peft", peft is None), ("twin_states", states == MEMORY)):
            if not missing:
                raise OptionError(f"Expected `{name}` together with `twin`, got it alone. Add twin=CHECKPOINT.")
        return None
    if twin == BASE:
        twin = spec.base_of(str(options.pretrained))
        if twin is None:
            known = ", ".join(spec.base) or "none"
            raise OptionError(
                f"{spec.name}: expected `pretrained` of twin=base to be a size whose base is known ({known}), its hub "
                f"id or a folder of that name, got {options.pretrained!r}. Name the base itself: twin=CHECKPOINT."
            )
    # The code of another checkpoint than the one that was trusted must not run.
    trusted = options.trust_remote_code if str(twin) == options.pretrained else None
    adapter = None if peft is None else str(peft)
    return replace(options, pretrained=str(twin), peft=adapter, repair=None, load_in=None, trust_remote_code=trusted)


def local_device(device: str) -> str:
    """Return a device; under a launcher of several processes, ``"auto"`` and ``"cuda"`` are this process's own GPU."""
    rank = os.environ.get("LOCAL_RANK")
    if device in ("auto", "cuda") and rank is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        return f"cuda:{rank}" if torch.cuda.is_available() else device
    return device
