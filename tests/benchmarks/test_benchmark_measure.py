"""Statistics on values worked out by hand, and the order in which the two sides take turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Comparison, Noted, Times, compare, stopwatch


@pytest.mark.parametrize(
    ("seconds", "median", "spread"),
    [
        ((3.0, 1.0, 2.0), 2.0, (1.0, 3.0)),
        ((4.0, 1.0, 2.0, 10.0), 3.0, (1.0, 10.0)),
        ((0.5,), 0.5, (0.5, 0.5)),
    ],
)
def test_median_and_spread(seconds: tuple[float, ...], median: float, spread: tuple[float, float]) -> None:
    times = Times(seconds)
    assert times.median == median
    assert times.spread == spread


def test_the_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    comparison = Comparison(Times((6.0, 2.0, 9.0)), Times((2.0, 4.0, 3.0)))
    assert comparison.ratio == 6.0 / 3.0
    assert comparison.ratio_spread == (0.5, 3.0)


@pytest.mark.parametrize(("repeats", "order"), [(1, "ab"), (3, "abbaab")])
def test_sides_take_turns_and_turns_at_going_first(repeats: int, order: str) -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    comparison = compare(side("a"), side("b"), repeats=repeats)
    assert "".join(calls) == order
    # A side's times are its own, in the order of rounds.
    assert comparison.numerator.seconds == tuple(i + 1.0 for i, name in enumerate(order) if name == "a")
    assert comparison.denominator.seconds == tuple(i + 1.0 for i, name in enumerate(order) if name == "b")


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the clock tick once a reading, and list what happens."""
    events: list[str] = []
    ticks: Iterator[int] = iter(range(100))

    def read() -> float:
        events.append("clock")
        return float(next(ticks))

    monkeypatch.setattr(measure, "perf_counter", read)
    monkeypatch.setattr(gc, "collect", lambda: events.append("collect"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"synchronise {device}"))
    return events


def test_the_stopwatch_times_the_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    events = fake_clock(monkeypatch)
    assert stopwatch(lambda: events.append("work"), torch.device("cpu"))() == 1.0
    assert events == ["collect", "clock", "work", "clock"]


def test_on_cuda_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    events = fake_clock(monkeypatch)
    assert stopwatch(lambda: events.append("work"), torch.device("cuda", 1))() == 1.0
    assert events == ["collect", "synchronise cuda:1", "clock", "work", "synchronise cuda:1", "clock"]


def test_a_timed_run_is_remembered() -> None:
    numbers = iter([3, 4])
    work: Noted[int] = Noted(lambda: next(numbers))
    timed = stopwatch(work, torch.device("cpu"))
    assert timed() > 0 and work.last == 3
    timed()
    assert (work.last, work.results) == (4, [4])
