"""Clustered intervals: every metric of a summary at once against the usual loop over resamples with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from sklearn import metrics as sk

from benchmarks.harness import Benchmark, Run, Sides, expect, wall_and_cpu
from medmllm_plugins.metrics.intervals import RESAMPLES
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import Summary, summarise

LABELS = ("a", "b", "c", "d")
LOOP_RESAMPLES = 20
"""Resamples of the loop; its time is scaled to :data:`RESAMPLES`."""


def outcomes(documents: int, groups: int, seed: int = 0) -> list[Outcome]:
    """Make up outcomes of four classes, about 60% correct."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(len(LABELS), size=documents)
    logits = generator.normal(size=(documents, len(LABELS)))
    logits[np.arange(documents), truth] += 1.2
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    predicted, group = scores.argmax(1), generator.integers(groups, size=documents)
    constant: dict[str, Any] = {"status": "parsed", "tokens": (1, 2, 3, 2), "blank": (-1.5, -1.4, -1.3, -1.2)}
    return [
        Outcome(f"{index:05d}", str(group[index]), LABELS[label], LABELS[answer], scores=tuple(row), **constant)
        for index, (label, answer, row) in enumerate(zip(truth, predicted, scores.tolist(), strict=True))
    ]


def loop(rows: Sequence[Outcome], resamples: int = LOOP_RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw groups with replacement, gather their rows, and call scikit-learn for each metric."""
    truth = np.array([LABELS.index(row.label) for row in rows])
    answers = np.array([LABELS.index(str(row.predicted)) for row in rows])
    scores = np.exp(np.array([row.scores for row in rows]))
    scores /= scores.sum(1, keepdims=True)
    names, group = np.unique([row.group for row in rows], return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        index = np.concatenate([members[number] for number in generator.integers(len(names), size=len(names))])
        y, answer, score = truth[index], answers[index], scores[index]
        values.append({
            "accuracy": sk.accuracy_score(y, answer),
            "balanced": sk.balanced_accuracy_score(y, answer),
            "macro_f1": sk.f1_score(y, answer, average="macro"),
            "mcc": sk.matthews_corrcoef(y, answer),
            "auroc": sk.roc_auc_score(y, score, multi_class="ovr"),
            "auprc": sk.average_precision_score(np.eye(len(LABELS))[y], score, average="macro"),
        })  # fmt: skip
    return {name: np.array([row[name] for row in values]) for name in values[0]}


def check(ours: Summary, baseline: Mapping[str, np.ndarray]) -> None:
    """Check that the median of the loop's resamples lies in our interval of each metric."""
    for name, values in baseline.items():
        estimate, middle = ours.metrics[name], float(np.median(values))
        got = f"{name} {middle:.4f} in the loop, outside {estimate}"
        expect(estimate.low <= middle <= estimate.high, "the same metrics", got, "tests/metrics")


def setup(run: Run, documents: int, groups: int, large_documents: int) -> Sides:
    """Make up the outcomes; the time of a larger summary is among the details."""
    rows, large_rows = outcomes(documents, groups), outcomes(large_documents, large_documents // 3)
    large = partial(summarise, large_rows, LABELS, None)
    return Sides(
        ours=partial(summarise, rows, LABELS, None),
        baseline=partial(loop, rows),
        check=check,
        baseline_scale=RESAMPLES / LOOP_RESAMPLES,
        details=lambda comparison: {"ours_s": median(comparison.ours), **wall_and_cpu("large", large)},
    )


BENCHMARK = Benchmark(
    name="bootstrap",
    ours=f"a whole summary: {RESAMPLES} resamples of weights, every metric",
    baseline=f"a loop with scikit-learn, {LOOP_RESAMPLES} resamples timed and scaled to {RESAMPLES}",
    setup=setup,
    sizes={
        "full": {"documents": 10_000, "groups": 3_000, "large_documents": 50_000},
        "quick": {"documents": 400, "groups": 120, "large_documents": 1_000},
    },
    targets={("full", "cpu"): 20.0},
    limits={"ours_s": 2.0, "large_s": 5.0},
    repeats=5,
)
