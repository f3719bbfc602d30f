"""Inputs and weights on their way to a device, and a device whose memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


@contextmanager
def parked(model: Any, keep: Collection[nn.Module] = ()) -> Iterator[None]:
    """Hold a model's weights in main memory while the context is open, so that another one fits; it cannot run then.

    Weights return to the devices that they came from, also where a model is spread over several. Those in main memory
    stay there.

    Args:
        model: the transformers model.
        keep: modules of it that stay on their devices.
    """
    kept = {id(tensor) for module in keep for tensor in (*module.parameters(), *module.buffers())}
    tensors: list[Tensor] = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in kept]
    moved = [(tensor, tensor.device) for tensor in tensors if tensor.device.type not in ("cpu", "meta")]
    for tensor, _ in moved:
        tensor.data = tensor.data.to("cpu")
    empty_cache()
    try:
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


def discard(model: Any) -> None:
    """Free the memory of a model's weights, wherever the model is still named; it cannot run any more."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    gc.collect()
    empty_cache()
