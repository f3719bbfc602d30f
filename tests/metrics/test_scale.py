"""The work of metrics grows in proportion to the documents; benchmarks/bootstrap.py measures how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import summarise

pytestmark = pytest.mark.slow


def outcomes(documents: int, labels: tuple[str, ...], finding: str | None = None) -> list[Outcome]:
    generator = np.random.default_rng(documents)
    truth = generator.integers(len(labels), size=documents)
    scores = generator.normal(size=(documents, len(labels)))
    scores[np.arange(documents), truth] += 1
    return [
        Outcome(f"{i:06d}", f"{i // 2}", labels[truth[i]], labels[int(row.argmax())], "parsed", tuple(row), finding)
        for i, row in enumerate(scores)
    ]


def several(documents: int) -> None:
    labels = tuple("abcdefghi")
    summarise(outcomes(documents, labels), labels, "a")


def two(documents: int) -> None:
    summarise(outcomes(documents, ("a", "b")), ("a", "b"), "a")


def findings(documents: int) -> None:
    summarise_findings(outcomes(documents, ("yes", "no"), "edema"), ("edema",))


@pytest.mark.parametrize("work", [several, two, findings])
def test_time_grows_with_the_documents(work: Callable[[int], None]) -> None:
    times = []
    for documents in (10_000, 50_000):
        start = time.process_time()
        work(documents)
        times.append(time.process_time() - start)
    # 5 where it is linear, 25 where it is quadratic; other processes take their share of the cache.
    assert times[1] < 10 * times[0], times
