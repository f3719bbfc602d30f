"""Inputs on their way to a device, and a device whose memory does not suffice."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Put a tensor on the device, floating-point values in the model's dtype.

    To CUDA it goes through pinned memory, so that the copy runs beside the computing.
    """
    if value.is_floating_point():
        value = value.to(dtype)
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def out_of_memory(error: BaseException) -> bool:
    """Return whether a computation failed because its device has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def empty_cache() -> None:
    """Hand memory that nothing holds any more back to the device; call it where the error itself is forgotten."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
