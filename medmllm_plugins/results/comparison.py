"""Two runs on the same documents: differences with paired, clustered tests.

Documents of one group are not independent, so the tests flip the signs of whole groups. McNemar's test, which takes
documents as independent, is reported as well where every group has one row, because readers know it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.metrics.classification import Floats, Ints, Weights, balanced_accuracy
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap,
)
from medmllm_plugins.metrics.outcome_arrays import Tables
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.metrics.readability import unreadable_outcomes
from medmllm_plugins.results.manifest import TaskEntry
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.utils.plain_text import text_table
from medmllm_plugins.utils.record import Record

FLIPS = 10_000
EXACT_UP_TO = 12
"""Up to this number of groups all sign flips are tried, above it :data:`FLIPS` random ones."""
_SIGNS = 1_000_000
"""Signs in one array, 8 MB."""
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """How a second run differs from a first one on a task.

    Attributes:
        n: rows compared.
        n_groups: groups they fall into.
        accuracy: second minus first, with a paired interval clustered by group.
        balanced: the same for balanced accuracy.
        p: of the accuracy difference, two-sided, by flipping the sign of whole groups' differences.
        p_holm: ``p`` corrected for the number of tasks compared (Holm 1979).
        p_mcnemar: McNemar's test; NaN where a group has several rows, which the test would take as independent.
        discordant: rows that only the first, and only the second, answered correctly.
    """

    task: str
    n: int
    n_groups: int
    first: float
    second: float
    accuracy: Estimate
    balanced: Estimate
    p: float
    p_holm: float
    p_mcnemar: float
    discordant: tuple[int, int]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, in their order.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    factors = np.arange(len(p_values), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(p_values, dtype=np.float64)[order]))
    return adjusted.tolist()


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's test.

    Exact binomial below 25 discordant pairs, else chi-square with continuity correction. Source: McNemar, "Note on the
    sampling error of the difference between correlated proportions or percentages", 1947.
    """
    total = only_first + only_second
    if total == 0:
        return 1.0
    if total < 25:
        tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
        return min(1.0, 2 * tail / float(2**total))
    chi = max(0.0, abs(only_first - only_second) - 1) ** 2 / total
    return math.erfc(math.sqrt(chi / 2))


def sign_flip(sums: Floats, seed: int = 0) -> float:
    """Return the two-sided p-value of (G,) differences of groups summing to zero, by flipping the signs of groups.

    Returns:
        The share of flips whose sum is at least as far from zero, the flip that was observed among them.
    """
    parts = sums[sums != 0]
    observed = abs(parts.sum()) - 1e-9
    if len(parts) <= EXACT_UP_TO:
        signs = np.array(list(product((1.0, -1.0), repeat=len(parts)))).reshape(2 ** len(parts), len(parts))
        return float((np.abs(signs @ parts) >= observed).mean())
    generator = np.random.default_rng(seed)
    at_once = max(1, _SIGNS // len(parts))
    extreme = 0
    for start in range(0, FLIPS, at_once):  # in parts, which draw the same signs as the whole would
        drawn = generator.integers(0, 2, size=(min(at_once, FLIPS - start), len(parts))).astype(np.float64)
        extreme += int((np.abs(2 * (drawn @ parts) - parts.sum()) >= observed).sum())
    return (1 + extreme) / (FLIPS + 1)


def compare(
    first: Sequence[Outcome], second: Sequence[Outcome], *, task: str = "", resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two runs row by row; ``task`` is named in messages.

    Raises:
        DataError: the runs have other rows, labels or groups.
    """
    first_by_id, second_by_id = ({outcome.id: outcome for outcome in outcomes} for outcomes in (first, second))
    if lone := sorted(set(first_by_id) ^ set(second_by_id)):
        raise DataError(
            f"{task}: expected both runs to have scored the same rows, got {len(lone)} in one of them only: "
            f"{', '.join(map(shown, lone[:_NAMED]))}{', …' if len(lone) > _NAMED else ''}. Run both on the same data, "
            "folds and --limit."
        )
    ids = sorted(first_by_id)
    if not ids:
        raise DataError(f"{task}: expected rows to compare, got none.")
    if odd := [
        name
        for name in ids
        if (first_by_id[name].label, first_by_id[name].group) != (second_by_id[name].label, second_by_id[name].group)
    ]:
        raise DataError(
            f"{task}: expected both runs to have the same labels and groups, got others in {len(odd)} rows: "
            f"{', '.join(map(repr, odd[:_NAMED]))}. Run both on the same data."
        )
    labels = sorted({outcome.label for outcome in first_by_id.values()})
    index = {label: k for k, label in enumerate(labels)}
    groups = {name: g for g, name in enumerate(sorted({outcome.group for outcome in first_by_id.values()}))}
    truth: Ints = np.array([index[first_by_id[name].label] for name in ids], dtype=np.intp)
    group: Ints = np.array([groups[first_by_id[name].group] for name in ids], dtype=np.intp)
    answers = [
        np.array([index.get(run[name].predicted or "", len(labels)) for name in ids], dtype=np.intp)
        for run in (first_by_id, second_by_id)
    ]
    correct = np.array([(answer == truth).astype(np.float64) for answer in answers])
    tables = [Tables(truth, answer, len(labels)) for answer in answers]
    difference = correct[1] - correct[0]

    def evaluate(weights: Weights) -> dict[str, Floats]:
        balanced = np.array([balanced_accuracy(table(weights)) for table in tables])
        return {"accuracy": (correct @ weights / weights.sum(0)).T, "balanced": balanced.T}

    _, resampled = bootstrap(evaluate, group, resamples=resamples, seed=seed, cells=len(labels) ** 2)
    # The weights with which the mean is the balanced accuracy: every class has the same share.
    counts = np.bincount(truth)
    weights_of = {"accuracy": np.ones(len(truth)), "balanced": (len(truth) / (len(labels) * counts))[truth]}

    def second_minus_first(name: str) -> Estimate:
        drawn = resampled[name][:, 1] - resampled[name][:, 0]
        return paired_difference(weights_of[name] * difference, drawn, group)

    p = sign_flip(np.bincount(group, difference, len(groups)).astype(np.float64), seed)
    discordant = int((difference < 0).sum()), int((difference > 0).sum())
    return Comparison(
        task=task,
        n=len(ids),
        n_groups=len(groups),
        first=float(correct[0].mean()),
        second=float(correct[1].mean()),
        accuracy=second_minus_first("accuracy"),
        balanced=second_minus_first("balanced"),
        p=p,
        p_holm=p,
        p_mcnemar=mcnemar(*discordant) if len(groups) == len(ids) else math.nan,
        discordant=discordant,
    )


def compare_runs(first: Path, second: Path) -> tuple[list[Comparison], list[str]]:
    """Compare two run folders over the tasks that both have.

    Returns:
        One comparison a task, p-values corrected over them, and warnings: what does not agree in a folder; tasks whose
        data sets share images, which are not independent; and tasks of which too few answers could be read.

    Raises:
        DataError: a folder is no run folder, no task is in both, or a task was run on other data.
    """
    first_run, second_run = load_run(first), load_run(second)
    tasks = [task for task in first_run.outcomes if task in second_run.outcomes]
    if not tasks:
        raise DataError(
            f"Expected {first} and {second} to have a task in common, got {sorted(first_run.outcomes)} and "
            f"{sorted(second_run.outcomes)}."
        )
    for task in tasks:
        entries = [run.manifest.tasks[task] for run in (first_run, second_run)]
        for what in ("dataset_fingerprint", "folds_hash"):
            if getattr(entries[0], what) != getattr(entries[1], what):
                raise DataError(
                    f"{task}: expected both runs on the same data, got another {what} in {first} than in {second}; "
                    "run both on the same files."
                )
    comparisons = [compare(first_run.outcomes[task], second_run.outcomes[task], task=task) for task in tasks]
    adjusted = holm([comparison.p for comparison in comparisons])
    compared = [replace(comparison, p_holm=p) for comparison, p in zip(comparisons, adjusted, strict=True)]
    unread = [
        f"{task} in {run.folder}: {shortfall.count}, so the difference says little about what the model knows."
        for task in tasks
        for run in (first_run, second_run)
        if (shortfall := unreadable_outcomes(run.outcomes[task])) is not None
    ]
    overlaps = _overlaps([first_run.manifest.tasks[task] for task in tasks])
    return compared, [*first_run.warnings, *second_run.warnings, *overlaps, *unread]


def _overlaps(tasks: Sequence[TaskEntry]) -> list[str]:
    by_name = [(task.settings.dataset, task.overlaps) for task in tasks if task.settings is not None]
    names = {name for name, _ in by_name}
    return sorted(
        {
            f"{name} and {other} share images ({why}): their results are not independent."
            for name, overlaps in by_name
            for other, why in overlaps.items()
            if other in names
        }
    )


def render(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a text table."""
    rows: list[tuple[str, ...]] = [
        ("task", "n", "groups", "first", "second", "difference (95% CI)", "p", "p Holm", "p McNemar")
    ]
    for comparison in comparisons:
        gap = comparison.accuracy
        interval = "no interval" if math.isnan(gap.low) else f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
        rows.append(
            (
                comparison.task,
                str(comparison.n),
                str(comparison.n_groups),
                f"{comparison.first:.1%}",
                f"{comparison.second:.1%}",
                f"{100 * gap.value:+.1f} points ({interval})",
                *map(_format_p, (comparison.p, comparison.p_holm, comparison.p_mcnemar)),
            )
        )
    return "\n".join(text_table(rows))


def _format_p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"
