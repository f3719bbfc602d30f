"""The least time that a device needs for a piece of work: its arithmetic and the weights that it reads.

The rates are measured, not taken from a data sheet: that of a large matrix product in the model's dtype, and that of a
copy in the device's memory. A forward pass takes at least as long as its floating-point operations at the first rate,
and as reading its weights at the second; passes come one after the other (roofline model: Williams et al., "Roofline",
Communications of the ACM 52(4), 2009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDES: Final = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices that are multiplied."""
COPIED: Final = {"cuda": 2**30, "cpu": 2**26}
"""Bytes of the tensor that is copied."""
SECONDS: Final = 0.2
"""Each rate is measured for this long at least."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device reaches.

    Attributes:
        flops: floating-point operations a second of a matrix product.
        bytes: bytes a second that a copy reads and writes.
    """

    flops: float
    bytes: float


@dataclass(slots=True)
class Pass:
    """What one forward pass needs: floating-point operations, and bytes of weights."""

    flops: float = 0.0
    bytes: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """Return the least time of the pass in seconds."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


@dataclass(slots=True)
class Work:
    """What a piece of work needs.

    Attributes:
        passes: forward passes through the whole model, in their order.
        rest: everything outside of them.
    """

    passes: list[Pass] = field(default_factory=list)
    rest: Pass = field(default_factory=Pass)

    @property
    def flops(self) -> float:
        """Return the floating-point operations of all of it."""
        return self.rest.flops + sum(part.flops for part in self.passes)

    def seconds(self, rates: Rates) -> float:
        """Return the least time in seconds."""
        return self.rest.seconds(rates) + sum(part.seconds(rates) for part in self.passes)


def measure_rates(device: str, dtype: torch.dtype) -> Rates:
    """Measure the rates of a device."""
    kind = torch.device(device).type
    left, right = (torch.randn(SIDES[kind], SIDES[kind], device=device).to(dtype) for _ in range(2))
    source = torch.zeros(COPIED[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _seconds(lambda: left @ right, device)
    copy = _seconds(lambda: target.copy_(source), device)
    return Rates(flops=2 * SIDES[kind] ** 3 / product, bytes=2 * COPIED[kind] / copy)


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, the best of several groups of calls."""
    for _ in range(2):
        work()
    best, until = float("inf"), perf_counter() + SECONDS
    while perf_counter() < until:
        _wait(device)
        start = perf_counter()
        for _ in range(4):
            work()
        _wait(device)
        best = min(best, (perf_counter() - start) / 4)
    return best


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def count_work(work: Callable[[], Any], model: nn.Module | None = None) -> Work:
    """Do ``work`` once and return what it needs.

    Args:
        work: runs the model, or other tensor operations.
        model: the model whose forward passes are counted one by one; ``None`` for work without weights.
    """
    needed = Work()
    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        if model is not None:
            stack.enter_context(_counted_passes(model, needed, counter))
        work()
    needed.rest.flops = counter.get_total_flops() - sum(part.flops for part in needed.passes)
    return needed


@contextmanager
def _counted_passes(model: nn.Module, needed: Work, counter: FlopCounterMode) -> Iterator[None]:
    """Add a pass for each call of the model, and the weights of each module that is called."""
    open_pass: list[Pass] = []

    def begin(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        open_pass.append(Pass(flops=-counter.get_total_flops()))

    def end(_module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
        done = open_pass.pop()
        done.flops += counter.get_total_flops()
        if not open_pass:
            needed.passes.append(done)

    def read(module: nn.Module, _args: Any) -> None:
        if isinstance(module, nn.Embedding):  # of which some rows are read
            return
        weights = sum(weight.nbytes for weight in module.parameters(recurse=False))
        (open_pass[0] if open_pass else needed.rest).bytes += weights

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
        model.register_forward_hook(end, with_kwargs=True),
        *(module.register_forward_pre_hook(read) for module in model.modules()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
