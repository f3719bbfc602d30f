"""Runs held against each other question by question: what they share, and by how much they differ on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, UNKNOWN, Estimate, bootstrap, known
from medmllm_plugins.metrics.intervals import estimate as interval_around
from medmllm_plugins.report.formatting import turned
from medmllm_plugins.report.run_collection import Cell, DataPart

Key: TypeAlias = tuple[str, str, str]
"""A row's document, finding and variant."""
Wanted: TypeAlias = tuple[Mapping[Key, float], Mapping[Key, float], Mapping[Key, str]]
"""Values of the first, values of the second, and the rows' groups."""
Gap: TypeAlias = tuple[Estimate, float, int]
"""First less second, mean of the second, and the number of rows that both have."""
NO_GAP: Gap = (UNKNOWN, float("nan"), 0)


def hits_of(cell: Cell) -> dict[Key, float]:
    """1 for each row that was answered rightly, else 0."""
    return {key(one): float(one.predicted == one.label) for one in cell.task.outcomes}


def groups_of(cell: Cell) -> dict[Key, str]:
    """The group of each row."""
    return {key(one): one.group for one in cell.task.outcomes}


def key(outcome: object) -> Key:
    """What tells a row from the others, in any run on the same data."""
    document = getattr(outcome, "document", None) or getattr(outcome, "id", "")
    return str(document), str(getattr(outcome, "finding", None) or ""), str(getattr(outcome, "variant", "") or "")


def paired(wanted: Mapping[str, Wanted]) -> dict[str, Gap]:
    """Differences between two sets of rows, over the rows that both have, with clustered intervals.

    Comparisons over the same rows share their resamples, which is what makes a page of many models fast.

    Args:
        wanted: by name.

    Returns:
        By name; no entry without rows.
    """
    batches: dict[tuple[Key, ...], list[str]] = {}
    for name, (first, second, _) in wanted.items():
        shared = tuple(sorted(first.keys() & second.keys()))
        if shared:
            batches.setdefault(shared, []).append(name)
    found: dict[str, Gap] = {}
    for shared, names in batches.items():
        by_group = wanted[names[0]][2]
        groups, group = np.unique([by_group[one] for one in shared], return_inverse=True)
        rows: Floats = np.array([[wanted[name][0][one] - wanted[name][1][one] for one in shared] for name in names])
        values, drawn = _resampled(rows, group.astype(np.intp))
        for place, name in enumerate(names):
            gap = interval_around(float(values[place]), drawn[:, place], groups=len(groups))
            found[name] = gap, float(np.mean([wanted[name][1][one] for one in shared])), len(shared)
    return found


def _resampled(rows: Floats, group: Ints) -> tuple[Floats, Floats]:
    values, drawn = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T}, group, resamples=RESAMPLES, seed=0, cells=len(rows)
    )
    return values[""], drawn[""]


def unlike(one: Cell, other: Cell, *, by_question: bool = False) -> str:
    """Why the other cell's figures say nothing of the first's: other data or other classes; empty where they are alike.

    What a manifest does not tell is taken to be alike.

    Args:
        one: a cell.
        other: another.
        by_question: only questions that both were asked are compared, so that findings may be missing in one of them.
    """
    if one.fingerprint and other.fingerprint and one.fingerprint != other.fingerprint:
        return "it was run on other data (the fingerprints differ)"
    if by_question and one.multilabel and other.multilabel:
        return ""
    if one.answers and other.answers and set(one.answers) != set(other.answers):
        return "it was asked about other classes"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Two models held against each other.

    Attributes:
        first: the one that answers more questions rightly.
        second: the other.
        gap: first less second, over the questions that both answered; unknown where there are none.
        mean: accuracy of the second on these.
        shared: their number.
    """

    first: Cell
    second: Cell
    gap: Estimate
    mean: float
    shared: int

    def seen_from(self, cell: Cell) -> Estimate:
        """The difference as one of the two less the other."""
        return self.gap if cell is self.first else turned(self.gap)


def differences(part: DataPart) -> list[Difference]:
    """Every two models that were asked about the same classes of the same data, the best first."""
    mains = [cell for one in part.models if (cell := part.main(one)) is not None and _accuracy(cell) >= 0]
    mains.sort(key=_accuracy, reverse=True)
    pairs = [(one, other) for one, other in combinations(mains, 2) if not unlike(one, other)]
    hits = {id(cell): hits_of(cell) for cell in mains}
    groups = {id(cell): groups_of(cell) for cell in mains}
    gaps = paired(
        {str(place): (hits[id(one)], hits[id(other)], groups[id(one)]) for place, (one, other) in enumerate(pairs)}
    )
    return [Difference(one, other, *gaps.get(str(place), NO_GAP)) for place, (one, other) in enumerate(pairs)]


def _accuracy(cell: Cell) -> float:
    found = cell.metrics.get("accuracy", UNKNOWN)
    return found.value if known(found) else -1.0


def leagues(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells sorted into those that may be ranked together, in order of appearance."""
    found: list[list[Cell]] = []
    for cell in cells:
        home = next((league for league in found if not any(unlike(cell, one) for one in league)), None)
        if home is None:
            found.append([cell])
        else:
            home.append(cell)
    return found
