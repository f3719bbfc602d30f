"""Paired comparisons: the questions that two results share, and the difference on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    UNKNOWN,
    Estimate,
    bootstrap,
    known,
)
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.results.comparison import holm, sign_flip

Key: TypeAlias = tuple[str, str, str]
"""Document, finding and variant of a row."""
Pair: TypeAlias = tuple[Mapping[Key, float], Mapping[Key, float], Mapping[Key, str]]
"""Values of the first, values of the second, and the group of each row."""
PairedDifference: TypeAlias = tuple[Estimate, float, int]
"""First minus second, mean of the second, and the number of shared rows."""
NO_DIFFERENCE: PairedDifference = (UNKNOWN, float("nan"), 0)


def correct_rows(result: TaskResult) -> dict[Key, float]:
    """Return 1 for each row that was answered correctly, else 0."""
    return {row_key(outcome): float(outcome.predicted == outcome.label) for outcome in result.task.outcomes}


def row_groups(result: TaskResult) -> dict[Key, str]:
    """Return the group of each row."""
    return {row_key(outcome): outcome.group for outcome in result.task.outcomes}


def row_key(outcome: Outcome) -> Key:
    """Return what identifies a row in any run on the same data."""
    return outcome.document or outcome.id, outcome.finding or "", outcome.variant


def paired_differences(pairs: Mapping[str, Pair]) -> dict[str, PairedDifference]:
    """Compute differences over the rows that both sides have, with intervals from a cluster bootstrap.

    Pairs over the same rows share their resamples, which makes a page of many models fast.

    Returns:
        Differences by name; pairs without shared rows are left out.
    """
    batches: dict[tuple[Key, ...], list[str]] = {}
    for name, (first, second, _) in pairs.items():
        if shared := tuple(sorted(first.keys() & second.keys())):
            batches.setdefault(shared, []).append(name)
    differences: dict[str, PairedDifference] = {}
    for shared, names in batches.items():
        group_of = pairs[names[0]][2]
        _, group = np.unique([group_of[key] for key in shared], return_inverse=True)
        rows: Floats = np.array([[side[key] for key in shared] for name in names for side in pairs[name][:2]])
        values, resampled = _resample(rows, group)
        for index, name in enumerate(names):
            former, latter = 2 * index, 2 * index + 1
            difference = paired_difference(
                rows[former] - rows[latter], resampled[:, former] - resampled[:, latter], group
            )
            differences[name] = difference, float(values[latter]), len(shared)
    return differences


def _resample(rows: Floats, group: Ints) -> tuple[Floats, Floats]:
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T}, group, resamples=RESAMPLES, seed=0, cells=len(rows)
    )
    return values[""], resampled[""]


def mismatch(first: TaskResult, second: TaskResult, *, by_question: bool = False) -> str:
    """Return why two results are not comparable, ``"data"`` or ``"classes"``; empty if they are.

    Facts that a manifest lacks are taken to be equal. Where only shared questions are compared, ``by_question``,
    findings may be missing in one of them.
    """
    if first.fingerprint and second.fingerprint and first.fingerprint != second.fingerprint:
        return "data"
    if by_question and first.multilabel and second.multilabel:
        return ""
    if first.answers and second.answers and set(first.answers) != set(second.answers):
        return "classes"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Two models compared with each other.

    Attributes:
        first: the result with the higher accuracy.
        second: the other.
        difference: first minus second, over the questions that both answered; unknown if there are none.
        second_accuracy: accuracy of the second on these.
        shared: number of these.
        first_alone: number of these that the first alone answered correctly; errors that are fixed, if it is the second
            with a repair.
        second_alone: likewise for the second; new errors.
        p: two-sided p-value of the difference, by flipping the signs of whole groups' differences; NaN without shared
            questions.
        p_holm: ``p`` corrected for the number of pairs of the data set (Holm 1979).
    """

    first: TaskResult
    second: TaskResult
    difference: Estimate
    second_accuracy: float
    shared: int
    first_alone: int
    second_alone: int
    p: float = math.nan
    p_holm: float = math.nan

    def seen_from(self, result: TaskResult) -> Estimate:
        """Return the difference as one of the two minus the other."""
        return self.difference if result is self.first else negated(self.difference)


def negated(difference: Estimate) -> Estimate:
    """Return a difference with its sides exchanged."""
    return Estimate(-difference.value, -difference.high, -difference.low)


def model_differences(dataset: DatasetRuns) -> list[Difference]:
    """Compare every two models that were asked about the same classes of the same data, the best first."""
    results = [result for model in dataset.models if (result := dataset.main(model)) is not None]
    results = sorted((result for result in results if _accuracy(result) >= 0), key=_accuracy, reverse=True)
    pairs = [(first, second) for first, second in combinations(results, 2) if not mismatch(first, second)]
    correct = {id(result): correct_rows(result) for result in results}
    groups = {id(result): row_groups(result) for result in results}
    rows = {
        str(index): (correct[id(first)], correct[id(second)], groups[id(first)])
        for index, (first, second) in enumerate(pairs)
    }
    differences = paired_differences(rows)
    p_values = {name: sign_flip(_group_sums(rows[name])) for name in differences}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        Difference(
            first,
            second,
            *differences.get(str(index), NO_DIFFERENCE),
            _correct_alone(correct[id(first)], correct[id(second)]),
            _correct_alone(correct[id(second)], correct[id(first)]),
            p_values.get(str(index), math.nan),
            corrected.get(str(index), math.nan),
        )
        for index, (first, second) in enumerate(pairs)
    ]


def _group_sums(pair: Pair) -> Floats:
    """Return the sum of the differences of each group over the rows that both sides have."""
    first, second, group_of = pair
    shared = sorted(first.keys() & second.keys())
    _, group = np.unique([group_of[key] for key in shared], return_inverse=True)
    sums: Floats = np.bincount(group, [first[key] - second[key] for key in shared]).astype(np.float64)
    return sums


def _correct_alone(correct: Mapping[Key, float], other: Mapping[Key, float]) -> int:
    """Return the number of rows that both have and only the first answers correctly."""
    return sum(value > other.get(key, math.inf) for key, value in correct.items())


@dataclass(frozen=True, slots=True, eq=False)
class ImageControl:
    """A task without the real image.

    Attributes:
        counterpart: the same question about the real image; ``None`` if it was not asked.
        loss: paired difference, real image minus control.
    """

    result: TaskResult
    counterpart: TaskResult | None
    loss: Estimate


def image_controls(dataset: DatasetRuns) -> list[ImageControl]:
    """Return all tasks without the real image, with what the real image adds."""
    results = [result for result in dataset.results if result.task.scored and result.task.image != "shown"]
    counterparts = [dataset.counterpart(result) for result in results]
    losses = paired_differences(
        {
            str(index): (correct_rows(shown), correct_rows(result), row_groups(shown))
            for index, (result, shown) in enumerate(zip(results, counterparts, strict=True))
            if shown is not None
        }
    )
    return [
        ImageControl(result, shown, losses.get(str(index), NO_DIFFERENCE)[0])
        for index, (result, shown) in enumerate(zip(results, counterparts, strict=True))
    ]


def _accuracy(result: TaskResult) -> float:
    accuracy = result.metrics.get("accuracy", UNKNOWN)
    return accuracy.value if known(accuracy) else -1.0


def comparable_groups(results: Sequence[TaskResult]) -> list[list[TaskResult]]:
    """Group results so that those of one group may be ranked together, in order of appearance."""
    groups: list[list[TaskResult]] = []
    for result in results:
        for group in groups:
            if not any(mismatch(result, member) for member in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return groups
