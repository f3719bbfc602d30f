"""Measuring two sides of a comparison: warm-up, interleaved repeats, medians and spreads. All times are in seconds."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Times:
    """How long one side took, run by run, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Shortest and longest run in seconds."""
        return min(self.seconds), max(self.seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides timed turn by turn; both have one run in each round."""

    numerator: Times
    denominator: Times

    @property
    def ratio(self) -> float:
        """Median of the one side over the median of the other."""
        return self.numerator.median / self.denominator.median

    @property
    def ratio_spread(self) -> tuple[float, float]:
        """Smallest and largest ratio within a round, where both sides met the same state of the machine."""
        pairs = zip(self.numerator.seconds, self.denominator.seconds, strict=True)
        ratios = [one / other for one, other in pairs]
        return min(ratios), max(ratios)


def compare(numerator: Callable[[], float], denominator: Callable[[], float], *, repeats: int) -> Comparison:
    """Time two sides, ``repeats`` times each, interleaved.

    The sides take turns, and take turns in who goes first, so that a machine which slows down or is busy for a while
    does not favour one of them. Neither is warmed up here.

    Args:
        numerator: runs one side once and returns the seconds it took, see :func:`stopwatch`.
        denominator: the same for the other side.
        repeats: rounds, at least 1.
    """
    sides = (numerator, denominator)
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(repeats):
        for side in (0, 1) if round_ % 2 == 0 else (1, 0):
            seconds[side].append(sides[side]())
    return Comparison(Times(tuple(seconds[0])), Times(tuple(seconds[1])))


def stopwatch(work: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """Make a function that does ``work`` once and returns the seconds it took.

    On CUDA the clock starts and stops when the device has nothing left to do, since kernels run behind the caller's
    back. Garbage of earlier runs is collected before the clock starts.
    """

    def synchronise() -> None:
        if device.type == "cuda":
            import torch

            torch.cuda.synchronize(device)

    def timed() -> float:
        gc.collect()
        synchronise()
        start = perf_counter()
        work()
        synchronise()
        return perf_counter() - start

    return timed


class Noted(Generic[Result]):
    """Work that remembers what it gave, so that a side of some minutes is checked by the run that was timed."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self.results: list[Result] = []

    def __call__(self) -> None:
        """Do the work once."""
        self.results = [self._work()]

    @property
    def last(self) -> Result:
        """What the last run gave; it must have run."""
        return self.results[-1]
