"""The tables of docs/statistics.md: ``pytest -m exhaustive -s tests/metrics/test_calibration_table.py`` prints them.

Every cell is a simulation with known truth, on seeds that no rule was chosen with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pytest
from scipy import stats
from support.interval_simulations import (
    accuracy_coverage,
    auroc_coverage,
    difference_coverage,
    differences,
    health_coverage,
    permutation_rejections,
)

pytestmark = pytest.mark.exhaustive

GROUPS = (20, 40, 100, 200)
CORRELATED = [("1", 0.0), ("3", 0.0), ("3", 0.3), ("3", 0.8), ("1 to 9", 0.0), ("1 to 9", 0.3), ("1 to 9", 0.8)]
ENDS = [(0.35, 0.85), (0.8, 0.8), (0.9, 0.97), (0.97, 0.9), (0.97, 0.99), (0.98, 0.98)]
LAYERS = (6, 24)
FEW = 10
"""Groups in which two classifiers differ; with fewer, few results are possible."""
PAIRS = [(0.5, 0.5), (0.8, 0.8), (0.95, 0.95), (0.8, 0.5), (0.9, 0.8), (0.98, 0.95)]

Row = tuple[Sequence[str | int | float], Sequence[Callable[[], float]]]


def table(header: str, rows: Iterable[Row]) -> list[float]:
    """Print a table in Markdown, row by row, and return the shares."""
    print(f"\n| {header} |\n|{' --- |' * (header.count('|') + 1)}", flush=True)
    shares = []
    for setting, cells in rows:
        values = [cell() for cell in cells]
        print("| " + " | ".join([*map(str, setting), *(f"{value:.1%}" for value in values)]) + " |", flush=True)
        shares += values
    return shares


def test_accuracies() -> None:
    accuracies = (0.5, 0.8, 0.9, 0.95, 0.98)
    rows: list[Row] = [
        ((groups, sizes, icc), [partial(accuracy_coverage, groups, p, icc, sizes, 500) for p in accuracies])
        for groups in GROUPS
        for sizes, icc in CORRELATED
    ]
    assert min(table("groups | documents per group | ICC | 50% | 80% | 90% | 95% | 98%", rows)) >= 0.91


def test_differences() -> None:
    """More than 97% only where the two differ in few groups, and then no more than the score test."""
    pairs = " | ".join(f"{first:.0%}, {second:.0%}" for first, second in PAIRS)
    print(f"\n| groups | documents per group | ICC | correlation of the two | {pairs} |\n|{' --- |' * 10}")
    for groups in GROUPS:
        for sizes, icc in [("1", 0.0), ("3", 0.8), ("1 to 9", 0.8)]:
            for rho in (0.0, 0.5, 0.9):
                cells = [difference_coverage(groups, pair, icc, rho, sizes, 1000) for pair in PAIRS]
                shown = " | ".join(f"{coverage:.1%} ({differing:.0f})" for coverage, differing in cells)
                print(f"| {groups} | {sizes} | {icc} | {rho} | {shown} |", flush=True)
                for pair, (coverage, differing) in zip(PAIRS, cells, strict=True):
                    assert coverage >= 0.91
                    assert coverage <= 0.98 or differing < FEW
                    if sizes == "1":
                        assert coverage == pytest.approx(score_test_coverage(groups, pair, rho), abs=0.03)


def score_test_coverage(n: int, pair: tuple[float, float], rho: float) -> float:
    """Return the exact coverage of Tango's score test for n independent documents, by enumeration."""
    truth = pair[0] - pair[1]
    # Both copy the same number with probability rho, and are independent otherwise.
    p, q = (rho * max(0.0, own - other) + (1 - rho) * own * (1 - other) for own, other in (pair, pair[::-1]))
    first, second = (counts.ravel() for counts in np.mgrid[: n + 1, : n + 1])
    first, second = first[first + second <= n], second[first + second <= n]
    probability = stats.multinomial.pmf(np.stack([first, second, n - first - second], axis=1), n, [p, q, 1 - p - q])
    linear = (2 * n - first + second) * truth - first - second
    expected = (np.sqrt(np.maximum(0, linear**2 + 8 * n * second * truth * (1 - truth))) - linear) / (4 * n)
    variance = np.maximum(n * (2 * expected + truth * (1 - truth)), 1e-12)
    # The variance of groups is that of G - 1.
    statistic = np.abs(first - second - n * truth) / np.sqrt(variance * n / (n - 1))
    return float(probability[statistic <= stats.norm.ppf(0.975)].sum())


def test_aurocs() -> None:
    aurocs = (0.5, 0.8, 0.95, 0.98)
    rows: list[Row] = [
        (
            (groups, sizes, icc, labels),
            [partial(auroc_coverage, groups, a, icc, sizes, 250, clustered=labels == "of groups") for a in aurocs],
        )
        for groups in GROUPS
        for sizes, icc, labels in [
            ("1", 0.0, "of documents"),
            *((sizes, icc, "of documents") for sizes in ("3", "1 to 9") for icc in (0.0, 0.8)),
            *((sizes, 0.8, "of groups") for sizes in ("3", "1 to 9")),
        ]
    ]
    assert min(table("groups | documents per group | ICC | labels | 50% | 80% | 95% | 98%", rows)) >= 0.90


def test_feature_health_scores() -> None:
    rows: list[Row] = [
        (
            (groups, sizes, icc, layers),
            [
                partial(health_coverage, groups, np.linspace(*ends, layers).tolist(), icc, 0.9, sizes, 250)
                for ends in ENDS
            ],
        )
        for groups in GROUPS
        for sizes, icc in [("3", 0.0), ("3", 0.8), ("1 to 9", 0.0), ("1 to 9", 0.8)]
        for layers in LAYERS
    ]
    ends = " | ".join(f"{start:.0%} to {end:.0%}" for start, end in ENDS)
    assert min(table(f"groups | documents per group | ICC | layers | {ends}", rows)) >= 0.90


def test_feature_health_scores_of_jagged_curves() -> None:
    """Inner layers lie three points above and below the line in turn, so that the penalty of true changes counts."""

    def jagged(start: float, end: float, layers: int) -> list[float]:
        inner = np.where(np.arange(layers) % 2, 0.03, -0.03)
        inner[[0, -1]] = 0
        return np.minimum(np.linspace(start, end, layers) + inner, 0.995).tolist()

    ends = [(0.35, 0.85), (0.8, 0.8), (0.9, 0.97), (0.97, 0.99)]
    rows: list[Row] = [
        (
            (groups, sizes, icc, layers),
            [partial(health_coverage, groups, jagged(*each, layers), icc, 0.9, sizes, 250) for each in ends],
        )
        for groups in GROUPS
        for sizes, icc in [("3", 0.0), ("1 to 9", 0.8)]
        for layers in LAYERS
    ]
    shown = " | ".join(f"{start:.0%} to {end:.0%}" for start, end in ends)
    assert min(table(f"groups | documents per group | ICC | layers | {shown}", rows)) >= 0.90


def test_feature_health_scores_of_other_curves() -> None:
    """Other shapes, and layers that correlate less."""

    def shape(name: str, start: float, end: float, layers: int) -> list[float]:
        line, numbers = np.linspace(start, end, layers), np.arange(layers)
        middle = (numbers > 0) & (numbers < layers - 1)
        return (
            {
                "step": np.where(numbers < layers // 2, start, end),
                "dip": line - 0.1 * ((numbers >= layers // 3) & (numbers < 2 * layers // 3)),
                "waves": line + 0.03 * middle * np.where(numbers // 3 % 2, 1, -1),
                "5 points in turn": line + 0.05 * middle * np.where(numbers % 2, 1, -1),
            }[name]
            .clip(max=0.995)
            .tolist()
        )  # type: ignore[no-any-return]

    ends = [(0.4, 0.9), (0.8, 0.8), (0.95, 0.99), (0.9, 0.7)]
    rows: list[Row] = [
        (
            (name, layers, groups, sizes, icc, rho),
            [partial(health_coverage, groups, shape(name, *each, layers), icc, rho, sizes, 250) for each in ends],
        )
        for name in ("step", "dip", "waves", "5 points in turn")
        for layers in (12, 28)
        for groups, sizes, icc in [(20, "3", 0.0), (60, "1 to 9", 0.5), (150, "1 to 9", 0.8)]
        for rho in (0.5, 0.9)
    ]
    shown = " | ".join(f"{start:.0%} to {end:.0%}" for start, end in ends)
    header = f"curve | layers | groups | documents per group | ICC | correlation of layers | {shown}"
    assert min(table(header, rows)) >= 0.90


def random_curve(generator: np.random.Generator) -> tuple[str, list[float]]:
    """Draw a curve of one of five kinds, with 5 to 32 layers."""
    layers = int(generator.choice([5, 8, 16, 24, 32]))
    kind = str(generator.choice(["monotone", "walk", "bumps", "saturating", "late"]))
    start, end = np.sort(generator.uniform(0.35, 0.97, 2))
    numbers = np.arange(layers)
    curve = {
        "monotone": start + (end - start) * np.sort(generator.random(layers)),
        "walk": generator.uniform(0.5, 0.9) + np.cumsum(generator.normal(0, 0.025, layers)),
        "bumps": end - 0.15 * (generator.random(layers) < 0.2),
        "saturating": end - (end - start) * np.exp(-5 * numbers / layers),
        "late": np.where(numbers < 0.8 * layers, start, end) + generator.normal(0, 0.01, layers),
    }[kind]
    return kind, curve.clip(0.2, 0.99).tolist()


def test_feature_health_scores_of_random_curves() -> None:
    """Curves that were drawn when the rule was complete."""
    generator = np.random.default_rng(2027)
    rows: list[Row] = []
    for _ in range(100):
        kind, curve = random_curve(generator)
        groups, sizes, icc = [(25, "3", 0.4), (50, "1 to 9", 0.2), (120, "1 to 9", 0.8), (200, "1", 0.0)][
            int(generator.integers(4))
        ]
        rho = float(generator.choice([0.3, 0.6, 0.9]))
        setting = (kind, len(curve), groups, sizes, icc, rho)
        rows.append((setting, [partial(health_coverage, groups, curve, icc, rho, sizes, 250)]))
    shares = table("curve | layers | groups | documents per group | ICC | correlation of layers | coverage", rows)
    assert sum(share >= 0.92 for share in shares) >= 95 and min(shares) >= 0.8


def test_permutations_of_labels() -> None:
    correlations = [(0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)]
    rows: list[Row] = [
        (
            (groups, sizes, classes),
            [partial(permutation_rejections, groups, sizes, icc, frequencies, 1000) for icc in correlations],
        )
        for groups in (20, 100)
        for sizes in ("3", "1 to 9")
        for classes, frequencies in [("50%, 50%", (0.5, 0.5)), ("15%, 35%, 50%", (0.15, 0.35, 0.5))]
    ]
    pairs = " | ".join(f"{labels:g}, {predictions:g}" for labels, predictions in correlations)
    # 1,000 trials have a standard error of 0.7 points.
    assert max(table(f"groups | documents per group | classes | ICC of labels, of predictions: {pairs}", rows)) <= 0.07


def test_equivalence() -> None:
    def ruled_out(groups: int, pair: tuple[float, float], icc: float, rho: float, sizes: str) -> float:
        results = differences(groups, pair, icc, rho, sizes, 250)
        return float(np.mean([result.high < pair[0] - pair[1] for result, _ in results]))

    pairs = [(0.6, 0.5), (0.9, 0.8), (0.98, 0.88)]
    rows: list[Row] = [
        ((groups, sizes, icc, rho), [partial(ruled_out, groups, pair, icc, rho, sizes) for pair in pairs])
        for groups in GROUPS
        for sizes, icc in [("3", 0.0), ("1 to 9", 0.8)]
        for rho in (0.0, 0.9)
    ]
    header = "groups | documents per group | ICC | correlation of the two | 60%, 50% | 90%, 80% | 98%, 88%"
    assert max(table(header, rows)) < 0.06
