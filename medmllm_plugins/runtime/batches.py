"""Batches: requests that go together, read ahead in threads, and the size that fits into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.devices import empty_cache, out_of_memory

Request = TypeVar("Request")
Read = TypeVar("Read")
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")

AUTO: Final = "auto"
FIRST: Final = 4
"""Where the search for the largest batch begins."""
LARGEST: Final = 256
WINDOW: Final = 8
"""Batches that are read ahead and sorted by size, so that a batch holds images of similar size."""
MOST_AHEAD: Final = 128
"""No more requests than that are read ahead, or a batch where that is more, to bound memory."""


class BatchSize:
    """The number of documents at a time: fixed, or with ``"auto"`` doubled until the memory is full.

    Whatever it is, a batch that does not fit is halved.
    """

    def __init__(self, size: int | str, largest: int = LARGEST) -> None:
        """Take a number, or ``"auto"`` for a size that grows up to ``largest``.

        Raises:
            OptionError: it is neither.
        """
        self.growing = size == AUTO
        self._largest = largest
        self.size = min(FIRST, largest) if self.growing else positive("batch_size", size, f" or {AUTO!r}")

    def fits(self) -> None:
        """Note that a batch of this size was answered."""
        if self.growing:
            self.size = min(2 * self.size, self._largest)

    def too_large(self, size: int) -> None:
        """Note that a batch of ``size`` did not fit."""
        self.growing = False
        self.size = max(1, size // 2)


def positive(name: str, value: int | str, alternative: str = "") -> int:
    """Return a whole number of at least 1, given as a number or a text.

    Raises:
        OptionError: it is none; the message names the argument, and ``alternative`` behind the number.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or str(number) != str(value):
        raise OptionError(f"Expected argument `{name}` to be a whole number of at least 1{alternative}, got {value!r}.")
    return number


class Batches(Generic[Request, Read, Prepared, Answer]):
    """Reads requests ahead in threads, and answers them in batches of similar size while the next is prepared."""

    def __init__(
        self,
        size: BatchSize,
        read: Callable[[Request], Read],
        weigh: Callable[[Read], float],
        prepare: Callable[[list[Read]], Prepared],
        answer: Callable[[list[Read], Prepared], list[Answer]],
        *,
        ahead: bool = True,
    ) -> None:
        """Take the steps.

        Args:
            size: how many at a time.
            read: reads a request; runs in several threads.
            weigh: how much there is to compute, by which requests are sorted.
            prepare: makes the model's input of a batch.
            answer: answers a batch.
            ahead: whether the next batch is prepared in a thread; on a CPU the two would compete for its cores.
        """
        self._size, self._read, self._weigh, self._prepare, self._answer = size, read, weigh, prepare, answer
        self._ahead = ahead

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[list[Request], list[Read], list[Answer]]]:
        """Answer all requests; yields each batch as it is done, not in the order given.

        Every request is answered exactly once, also where batches had to be halved.
        """
        workers = reader_threads()
        todo = deque(requests)
        ahead: deque[tuple[Request, Future[Read]]] = deque()
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="medmllm-read") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="medmllm-prepare") as preparer,
        ):

            def refill() -> None:
                wanted = max(self._size.size, min(WINDOW * self._size.size, MOST_AHEAD))
                while todo and len(ahead) < wanted:
                    request = todo.popleft()
                    ahead.append((request, pool.submit(self._read, request)))

            try:
                while todo or ahead:
                    refill()
                    half = max(self._size.size, min(WINDOW * self._size.size, MOST_AHEAD) // 2)
                    count = min(len(ahead), half)
                    window = [(request, future.result()) for request, future in (ahead.popleft() for _ in range(count))]
                    refill()  # while the model is busy, the next are read
                    # The largest first, as they may not fit.
                    window.sort(key=lambda pair: self._weigh(pair[1]), reverse=True)
                    yield from self._answer_all(window, preparer)
            finally:
                for _, future in ahead:
                    future.cancel()

    def _answer_all(
        self, window: list[tuple[Request, Read]], preparer: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Request], list[Read], list[Answer]]]:
        start = 0
        ready: tuple[int, int, Future[Prepared]] | None = None  # where it begins, how many, and its input
        while start < len(window):
            batch = window[start : start + self._size.size]
            read = [item for _, item in batch]
            prepared = ready[2] if ready is not None and ready[:2] == (start, len(batch)) else None
            following = [item for _, item in window[start + len(batch) : start + len(batch) + self._size.size]]
            try:
                inputs = self._prepare(read) if prepared is None else prepared.result()
                if following and self._ahead:
                    ready = (start + len(batch), len(following), preparer.submit(self._prepare, following))
                answers = self._answer(read, inputs)
            except RuntimeError as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                self._size.too_large(len(batch))
                ready = None
                del error
                empty_cache()
                continue
            if len(batch) == self._size.size:
                self._size.fits()
            start += len(batch)
            yield [request for request, _ in batch], read, answers
