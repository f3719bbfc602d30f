"""The same documents asked in several ways: how the order of the options or the wording changes the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap,
    effective_groups,
    estimate_metrics,
    size_inflation,
)
from medmllm_plugins.metrics.outcome_arrays import OVERALL, Tables, score_matrix
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.summary import METRICS_FORMAT, Summary, summarise
from medmllm_plugins.metrics.validation import check_outcomes
from medmllm_plugins.utils.record import VersionedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsSummary(VersionedRecord):
    """Metrics of several variants of a task; intervals are over the same resamples of groups.

    Attributes:
        n: rows of all variants.
        n_groups: groups the documents belong to.
        metrics: means over the variants of ``accuracy``, ``balanced``, ``macro_f1``, ``mcc``, ``parsed`` and, with
            label scores, ``auroc``; ``spread``, the standard deviation of accuracy over the variants; ``flips``, the
            share of documents that are not answered alike under all variants (an unparsed answer counts as an answer
            of its own).
        variants: the full metrics of each variant by name.
        positions: by variant, the share of its parsed answers that name the option at each position of the list; empty
            where the variants do not differ in order.
    """

    FORMAT: ClassVar[str] = METRICS_FORMAT

    n: int
    n_groups: int
    metrics: Mapping[str, Estimate]
    variants: Mapping[str, Summary]
    positions: Mapping[str, tuple[float, ...]]

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Scores of answering without the image, which are the same for every variant."""
        return next((variant.baselines for variant in self.variants.values()), {})

    @property
    def majority(self) -> str:
        """The class that the majority baseline answers."""
        return next((variant.majority for variant in self.variants.values()), "")

    def headline(self) -> str:
        """Return one sentence: mean accuracy, its range, and how many documents change their answer."""
        accuracies = [variant.metrics["accuracy"].value for variant in self.variants.values()]
        return (
            f"mean accuracy {self.metrics['accuracy'].percent()} over {len(self.variants)} variants (from "
            f"{min(accuracies):.1%} to {max(accuracies):.1%}), {self.metrics['flips'].value:.1%} of the documents "
            "answered differently among them."
        )


class _Evaluator:
    """The answers of all variants, evaluated under any weights of the documents.

    Attributes:
        group: (n,) index of each document's group.
        inflation: factor of variances, from the documents' mean accuracies.
        inflation_of: that of the AUROC.
    """

    def __init__(self, by_variant: Mapping[str, Sequence[Outcome]], labels: Sequence[str]) -> None:
        """Arrange the outcomes; those of each variant are in the order of their documents."""
        first = next(iter(by_variant.values()))
        group_index = {name: index for index, name in enumerate(sorted({outcome.group for outcome in first}))}
        class_index = {label: k for k, label in enumerate(labels)}
        self.group: Ints = np.array([group_index[outcome.group] for outcome in first], dtype=np.intp)
        truth: Ints = np.array([class_index[outcome.label] for outcome in first], dtype=np.intp)
        answers: Ints = np.array(
            [
                [class_index.get(outcome.predicted or "", len(labels)) for outcome in rows]
                for rows in by_variant.values()
            ]
        )
        self._tables = [Tables(truth, row, len(labels)) for row in answers]
        matrices = [score_matrix(rows) for rows in by_variant.values()]
        is_ranked = np.unique(truth).size > 1
        self._rankings = [MacroRanking(scores, truth) for scores in matrices if scores is not None and is_ranked]
        self.inflation = float(size_inflation((answers == truth).mean(0), self.group))
        factors = [ranking.inflation(self.group) for ranking in self._rankings]
        self.inflation_of = {"auroc": float(np.mean(factors))} if factors else {}
        self._differs = (answers != answers[0]).any(0).astype(np.float64)

    def __call__(self, weights: Weights) -> dict[str, Floats]:
        """Return every metric under document weights (n, B): (B,) each."""
        counts = [table(weights) for table in self._tables]
        by_variant = {name: np.stack([metric(table) for table in counts]) for name, metric in OVERALL.items()}
        values = {name: stacked.mean(0) for name, stacked in by_variant.items()}
        if len(self._rankings) == len(self._tables):
            values["auroc"] = np.stack([ranking(weights)[0] for ranking in self._rankings]).mean(0)
        values["spread"] = by_variant["accuracy"].std(0)
        values["flips"] = (self._differs @ weights) / weights.sum(0)
        return values


def summarise_variants(
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
    positive: str | None,
    *,
    kind: str = "multiclass",
    orders: Mapping[str, Sequence[str]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> VariantsSummary:
    """Compare the variants under which the same documents were asked; ``orders`` lists the classes of each variant.

    Raises:
        DataError: a document is not in every variant exactly once.
    """
    check_outcomes(outcomes, labels)
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.variant, outcome.document or outcome.id)):
        by_variant.setdefault(outcome.variant, []).append(outcome)
    documents = {name: [outcome.document or outcome.id for outcome in rows] for name, rows in by_variant.items()}
    first = next(iter(documents.values()))
    if len(set(first)) < len(first) or any(others != first for others in documents.values()):
        counts = {name: len(others) for name, others in documents.items()}
        raise DataError(
            f"Expected every document once in each variant, got other documents among them (rows: {counts}). With "
            "--limit of lmms-eval, use a multiple of the number of variants."
        )
    evaluator = _Evaluator(by_variant, labels)
    cells = len(labels) ** 2
    values, resampled = bootstrap(evaluator, evaluator.group, resamples=resamples, seed=seed, cells=cells)
    groups = effective_groups(evaluator.group)
    return VariantsSummary(
        n=len(outcomes),
        n_groups=int(np.unique(evaluator.group).size),
        metrics=estimate_metrics(
            values, resampled, groups=groups, inflation=evaluator.inflation, inflation_of=evaluator.inflation_of
        ),
        variants={
            name: summarise(rows, labels, positive, kind=kind, resamples=resamples, seed=seed)
            for name, rows in by_variant.items()
        },
        positions={
            name: _positions(by_variant[name], order) for name, order in (orders or {}).items() if name in by_variant
        },
    )


def _positions(outcomes: Sequence[Outcome], order: Sequence[str]) -> tuple[float, ...]:
    named = Counter(outcome.predicted for outcome in outcomes if outcome.predicted is not None)
    total = sum(named.values())
    return tuple(named[label] / total if total else 0.0 for label in order)
