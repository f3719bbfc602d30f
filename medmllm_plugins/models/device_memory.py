"""Memory of a device that does not suffice."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Return whether a computation failed because its device has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def empty_cache() -> None:
    """Hand memory that nothing holds any more back to the device; call it where the error itself is forgotten."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
