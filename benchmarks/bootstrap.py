"""Clustered intervals: this package's 2,000 draws at once against the usual loop over draws with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn import metrics as sk

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.errors import ModelError
from medmllm_plugins.metrics.intervals import RESAMPLES
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import Summary, summarise

LABELS = ("a", "b", "c", "d")
DOCUMENTS = 10_000
GROUPS = 3_000
LARGE = 50_000
LOOP_DRAWS = 20
"""The loop does so many draws only; its time is told for :data:`RESAMPLES`."""
METRICS = ("accuracy", "balanced", "macro_f1", "mcc", "auroc", "auprc")


def outcomes(seed: int = 0, documents: int = DOCUMENTS, groups: int = GROUPS) -> list[Outcome]:
    """Made-up outcomes: 10,000 documents of 3,000 groups, four classes, about 60 % right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(len(LABELS), size=documents)
    logits = generator.normal(size=(documents, len(LABELS)))
    logits[np.arange(documents), truth] += 1.2
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    group = generator.integers(groups, size=documents)
    return [
        Outcome(
            id=f"{index:05d}",
            group=str(group[index]),
            label=LABELS[truth[index]],
            predicted=LABELS[int(scores[index].argmax())],
            status="parsed",
            scores=tuple(map(float, scores[index])),
            tokens=(1, 2, 3, 2),
            blank=(-1.5, -1.4, -1.3, -1.2),
        )
        for index in range(documents)
    ]


def at_once(rows: Sequence[Outcome]) -> Summary:
    """Every metric with its interval, as a run's summary is made."""
    return summarise(rows, LABELS, None)


def loop(rows: Sequence[Outcome], draws: int = LOOP_DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw groups with replacement, gather their rows, and call scikit-learn for each metric."""
    truth = np.array([LABELS.index(row.label) for row in rows])
    answer = np.array([LABELS.index(str(row.predicted)) for row in rows])
    scores = np.exp(np.array([row.scores for row in rows]))
    scores /= scores.sum(1, keepdims=True)
    names, group = np.unique([row.group for row in rows], return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(draws):
        at = np.concatenate([members[one] for one in generator.integers(len(names), size=len(names))])
        right, said, likely = truth[at], answer[at], scores[at]
        found["accuracy"].append(sk.accuracy_score(right, said))
        found["balanced"].append(sk.balanced_accuracy_score(right, said))
        found["macro_f1"].append(sk.f1_score(right, said, average="macro"))
        found["mcc"].append(sk.matthews_corrcoef(right, said))
        found["auroc"].append(sk.roc_auc_score(right, likely, multi_class="ovr"))
        found["auprc"].append(sk.average_precision_score(np.eye(len(LABELS))[right], likely, average="macro"))
    return {name: np.array(values) for name, values in found.items()}


def check(rows: Sequence[Outcome], summary: Summary) -> None:
    """See to it that both sides compute the same.

    Raises:
        ModelError: the middle of the loop's draws lies outside of an interval.
    """
    for name, drawn in loop(rows).items():
        estimate = summary.metrics[name]
        if not estimate.low <= float(np.median(drawn)) <= estimate.high:
            raise ModelError(
                f"Expected both sides to agree, found {name} {np.median(drawn):.4f} in the loop, outside of "
                f"{estimate}: run `pytest tests/metrics`, and mend what it finds."
            )


def run(settings: Settings) -> Record:
    """Compare the two ways to resample.

    Raises:
        ModelError: they do not agree.
    """
    rows = outcomes()
    check(rows, at_once(rows))
    large = outcomes(documents=LARGE, groups=LARGE // 3)
    began, cpu = time.perf_counter(), time.process_time()
    at_once(large)
    large_s, large_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    device = torch.device("cpu")
    fast = stopwatch(lambda: at_once(rows), device)
    slow = stopwatch(lambda: loop(rows), device)
    comparison = compare(lambda: slow() * RESAMPLES / LOOP_DRAWS, fast, repeats=settings.repeats)
    return Record(
        settings=settings,
        sides=(
            ("loop", f"a loop over draws with scikit-learn, {LOOP_DRAWS} draws timed and told for {RESAMPLES}"),
            ("at_once", f"this package: {RESAMPLES} draws of weights, every metric of a summary"),
        ),
        comparison=comparison,
        target=Target("at least", 20.0),
        details={
            "documents": DOCUMENTS,
            "groups": GROUPS,
            "draws": RESAMPLES,
            "metrics_of_the_loop": len(METRICS),
            "at_once_under_2_s": comparison.denominator.median < 2,
            "large_documents": LARGE,
            "large_s": round(large_s, 2),
            "large_cpu_s": round(large_cpu_s, 2),
            "large_under_5_s": large_s < 5,
        },
    )
