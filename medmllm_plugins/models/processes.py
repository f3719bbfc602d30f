"""The processes of one command: started by ``accelerate launch`` or ``torchrun``, or one alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Processes:
    """What the processes of a command do together; one alone does nothing.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK") or 0)
        self.count = int(os.environ.get("WORLD_SIZE") or 1)
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.cuda.is_available())

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of items, of which every process has the same list."""
        return list(items[self.rank :: self.count])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of all processes."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def wait(self) -> None:
        """Wait for all processes."""
        if self._state is not None:
            self._state.wait_for_everyone()
