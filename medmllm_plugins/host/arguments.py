"""Reading of the arguments that a model is given on the host's command line."""

from __future__ import annotations

import os
from pathlib import Path

from medmllm_plugins.errors import OptionError


def positive(name: str, value: int | str) -> int:
    """A whole number of at least 1, or the text of one.

    Raises:
        OptionError: it is none.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or str(number) != str(value):
        raise OptionError(f"Expected argument `{name}` to be a whole number of at least 1, but got {value!r}.")
    return number


def run_folder(folder: str | None) -> str | None:
    """The path of a folder that is there or can be made; ``None`` where none was named.

    Raises:
        OptionError: a file is in the way.
    """
    if folder is None:
        return None
    path = Path(str(folder)).expanduser().absolute()
    if not str(folder) or any(place.exists() and not place.is_dir() for place in (path, *path.parents)):
        raise OptionError(f"Expected argument `run_dir` to be a folder or a path to make one at, but got {folder!r}.")
    return str(path)


def local_device(device: str) -> str:
    """Under a launcher of several processes, "the GPU" is this process's own."""
    rank = os.environ.get("LOCAL_RANK")
    if device in ("auto", "cuda") and rank is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        return f"cuda:{rank}" if torch.cuda.is_available() else device
    return device
