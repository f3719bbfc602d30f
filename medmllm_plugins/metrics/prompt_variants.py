"""The same documents asked in several ways: what an order of options or a wording does to the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate
from medmllm_plugins.metrics.outcome_arrays import OVERALL, Tables, score_matrix
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.ranking import MacroRanking
from medmllm_plugins.metrics.summary import Summary, summarise
from medmllm_plugins.metrics.validation import check_outcomes
from medmllm_plugins.utils.atomic_files import csv_text, write_whole


@dataclass(frozen=True, slots=True)
class VariantsSummary:
    """Figures of several variants side by side; intervals are over the same resamples of groups.

    Attributes:
        n: rows in all.
        n_groups: groups the documents fall into.
        metrics: means over the variants of ``accuracy``, ``balanced``, ``macro_f1``, ``mcc``, ``parsed`` and, with
            label scores, ``auroc``; ``spread``, the standard deviation of accuracy over the variants; ``flips``, the
            share of documents that are not answered alike under all variants (an answer that was not parsed counts as
            an answer of its own).
        variants: the full figures of each variant by name.
        positions: by variant, the share of its parsed answers that name the option at each place of the list; empty
            where the variants do not differ in order.
    """

    n: int
    n_groups: int
    metrics: dict[str, Estimate]
    variants: dict[str, Summary]
    positions: dict[str, tuple[float, ...]]

    def headline(self) -> str:
        """The one sentence to read."""
        lowest, highest = (
            pick(found.metrics["accuracy"].value for found in self.variants.values()) for pick in (min, max)
        )
        return (
            f"mean accuracy {self.metrics['accuracy'].percent()} over {len(self.variants)} variants (from {lowest:.1%} "
            f"to {highest:.1%}), {self.metrics['flips'].value:.1%} of the documents answered differently among them."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN."""
        return {
            "n": self.n,
            "n_groups": self.n_groups,
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "variants": {name: found.to_dict() for name, found in self.variants.items()},
            "positions": {name: list(shares) for name, shares in self.positions.items()},
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``<stem>.metrics.json``, ``.metrics.csv`` and ``.variants.csv``, each whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = ("accuracy", "balanced", "parsed")
        texts = {
            "metrics.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            "metrics.csv": csv_text(
                ["metric", "value", "low", "high"],
                [[name, *found.to_dict().values()] for name, found in self.metrics.items()],
            ),
            "variants.csv": csv_text(
                ["variant", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))],
                [
                    [variant, *(value for name in names for value in found.metrics[name].to_dict().values())]
                    for variant, found in self.variants.items()
                ],
            ),
        }
        for name, text in texts.items():
            write_whole(folder / f"{stem}.{name}", text)
        return [folder / f"{stem}.{name}" for name in texts]


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
    """Compare the variants under which the same documents were asked.

    Args:
        outcomes: one a row; ``document`` and ``variant`` say which.
        labels: the classes.
        positive: the positive class, if there is one.
        kind: ``"multiclass"`` or ``"ordinal"``.
        orders: the order in which each variant lists the classes, where that is what varies.
        resamples: bootstrap resamples.
        seed: of the random generator.

    Raises:
        DataError: a document is not there in every variant, exactly once.
    """
    check_outcomes(outcomes, labels)
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.variant, outcome.document or outcome.id)):
        by_variant.setdefault(outcome.variant, []).append(outcome)
    asked = {name: [outcome.document or outcome.id for outcome in rows] for name, rows in by_variant.items()}
    first = next(iter(asked.values()))
    if len(set(first)) < len(first) or any(documents != first for documents in asked.values()):
        counts = {name: len(documents) for name, documents in asked.items()}
        raise DataError(
            f"Expected every document once in each variant, found other documents among them (rows: {counts}). With "
            "the host's --limit, take a multiple of the number of variants."
        )
    groups = {name: index for index, name in enumerate(sorted({o.group for o in outcomes}))}
    group: Ints = np.array([groups[outcome.group] for outcome in next(iter(by_variant.values()))], dtype=np.intp)
    index = {label: k for k, label in enumerate(labels)}
    truth: Ints = np.array([index[outcome.label] for outcome in next(iter(by_variant.values()))], dtype=np.intp)
    answers: Ints = np.array(
        [[index.get(outcome.predicted or "", len(labels)) for outcome in rows] for rows in by_variant.values()]
    )
    tables = [Tables(truth, row, len(labels)) for row in answers]
    matrices = [score_matrix(rows) for rows in by_variant.values()]
    ranked = [MacroRanking(scores, truth) for scores in matrices if scores is not None and np.unique(truth).size > 1]
    differs = (answers != answers[0]).any(0).astype(np.float64)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        counts = [table(weights) for table in tables]
        each = {name: np.stack([metric(one) for one in counts]) for name, metric in OVERALL.items()}
        found = {name: values.mean(0) for name, values in each.items()}
        if len(ranked) == len(tables):
            found["auroc"] = np.stack([ranking(weights)[0] for ranking in ranked]).mean(0)
        found["spread"] = each["accuracy"].std(0)
        found["flips"] = (differs @ weights) / weights.sum(0)
        return found

    values, drawn = bootstrap(evaluate, group, resamples=resamples, seed=seed, cells=len(labels) ** 2)
    return VariantsSummary(
        n=len(outcomes),
        n_groups=len(groups),
        metrics={name: estimate(float(values[name]), drawn[name], groups=len(groups)) for name in values},
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
