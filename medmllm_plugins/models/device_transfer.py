"""Inputs on their way to the device."""

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
