"""Batches: every request is answered once, whatever the size and the memory; the largest size that fits is found."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmllm_plugins.errors import OptionError
from medmllm_plugins.runtime.batches import AUTO, LARGEST, MOST_AHEAD, Batches, BatchSize


def answer_all(count: int, size: int | str, fits: int, ahead: bool = True) -> tuple[list[int], list[int]]:
    """Answers in the order of the requests, and the sizes of the batches that were answered."""
    sizes: list[int] = []

    def answer(batch: list[int], prepared: tuple[int, ...]) -> list[int]:
        assert prepared == tuple(batch)
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(batch))
        return [value * 10 for value in batch]

    answer_by_request: dict[int, int] = {}
    batches = Batches(BatchSize(size), lambda request: request, float, tuple, answer, ahead=ahead)
    for requests, read, answers in batches.run(range(count)):
        assert read == requests
        for request, value in zip(requests, answers, strict=True):
            assert request not in answer_by_request
            answer_by_request[request] = value
    return [answer_by_request[request] for request in range(count)], sizes


@settings(max_examples=80)
@given(
    count=st.integers(0, 300),
    size=st.one_of(st.integers(1, 70), st.just(AUTO)),
    fits=st.integers(1, 300),
    ahead=st.booleans(),
)
def test_every_request_is_answered_once(count: int, size: int | str, fits: int, ahead: bool) -> None:
    answers, sizes = answer_all(count, size, fits, ahead)
    assert answers == [request * 10 for request in range(count)]
    assert sum(sizes) == count and all(size <= fits for size in sizes)


def test_the_largest_size_that_fits_is_found() -> None:
    _, sizes = answer_all(2000, AUTO, 37)
    assert sizes[0] == 4 and max(sizes) == 32 and sizes[-5] == 32
    _, sizes = answer_all(5000, AUTO, 10**9)
    assert max(sizes) == LARGEST


def test_a_batch_of_one_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        answer_all(3, 8, 0)


def test_other_errors_pass() -> None:
    def broken(batch: list[int], prepared: tuple[int, ...]) -> list[int]:
        raise RuntimeError("the sizes of tensors must match")

    with pytest.raises(RuntimeError, match="must match"):
        list(Batches(BatchSize(4), lambda request: request, float, tuple, broken).run(range(8)))


def test_like_sizes_stand_together() -> None:
    weights = {request: float(request % 2) for request in range(64)}
    batches = Batches(BatchSize(8), lambda request: request, weights.__getitem__, tuple, lambda batch, _: list(batch))
    mixed = [len({weights[request] for request in requests}) for requests, _, _ in batches.run(range(64))]
    assert mixed.count(1) == len(mixed)


def test_reading_runs_ahead_in_threads_and_not_too_far() -> None:
    lock, reading, most, ahead = threading.Lock(), 0, 0, 0
    read: list[int] = []

    def slow(request: int) -> int:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
        time.sleep(0.002)
        with lock:
            reading -= 1
            read.append(request)
        return request

    done = 0
    for requests, _, _ in Batches(BatchSize(2), slow, float, tuple, lambda batch, _: list(batch)).run(range(400)):
        done += len(requests)
        ahead = max(ahead, len(read) - done)
    assert done == 400 and most > 1 and 2 < ahead <= MOST_AHEAD + 16


@pytest.mark.parametrize("size", [0, -1, "two", "1.5", None, "AUTO"])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(OptionError, match="whole number of at least 1 or 'auto'"):
        BatchSize(size)  # type: ignore[arg-type]
