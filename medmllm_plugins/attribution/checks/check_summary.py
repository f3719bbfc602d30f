"""Summary of the checks of each method at each layer, over all explained documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.results.attribution_records import (
    RANDOMISATION_LEVELS,
    SETTINGS,
    AttributionEntry,
    AttributionIndex,
    AttributionSummary,
    ProcessCascade,
    RandomisationLevel,
)
from medmllm_plugins.results.attribution_verdicts import (
    is_incomplete,
    is_random,
    is_unstable,
    misses_lesion,
    survives_randomisation,
)
from medmllm_plugins.utils.plain_text import text_table

RESAMPLES: Final = 2000
"""Bootstrap resamples of groups."""
_GENERAL_CHECKS: Final = {
    "deletion_gain": "deletion",
    "insertion_gain": "insertion",
    "stability": "stability",
    "randomisation": "randomisation",
}
"""Checks that apply to every method at every layer; a method is trusted only if all of them were made."""
_MEANS: Final = ("completeness_gap", "stability", "inside", "pointing")


def summarise_checks(
    entries: Sequence[AttributionEntry], cascades: Sequence[ProcessCascade]
) -> tuple[AttributionSummary, ...]:
    """Return means with 95% intervals by method, layer and settings, with the checks that failed or are missing.

    A method is ``trusted`` at a layer if all general checks were made and none failed. Intervals are percentile
    intervals over :data:`RESAMPLES` bootstrap resamples of groups. The deletion gain is the area for random orders
    minus that for the map's order, the insertion gain the opposite: above zero, the map is better. ``inside`` is also
    given for correct answers and for errors, since a map of a wrong decision may be outside the lesion and be right.
    """
    entries_of: dict[tuple[Any, ...], list[AttributionEntry]] = {}
    for entry in entries:
        entries_of.setdefault(summary_key(entry), []).append(entry)
    return tuple(_summarise(key, members, cascades) for key, members in entries_of.items())


def summary_key(record: AttributionEntry | ProcessCascade) -> tuple[Any, ...]:
    """Return the values of :data:`SETTINGS`, which entries of one row share."""
    return tuple(getattr(record, name) for name in SETTINGS)


def _summarise(
    key: tuple[Any, ...], entries: Sequence[AttributionEntry], cascades: Sequence[ProcessCascade]
) -> AttributionSummary:
    groups = [entry.group for entry in entries]
    checks = [entry.checks for entry in entries]

    def gain(name: str, sign: float) -> Estimate | None:
        pairs = [(getattr(check, name), getattr(check, f"{name}_random")) for check in checks]
        return _mean([None if None in pair else sign * (pair[1] - pair[0]) for pair in pairs], groups)

    def inside(hit: bool) -> Estimate | None:
        return _mean([entry.checks.inside if entry.hit == hit else None for entry in entries], groups)

    areas = [check.area for check in checks if check.area is not None]
    flat = [check.flat for check in checks if check.flat is not None]
    means: dict[str, Any] = {name: _mean([getattr(check, name) for check in checks], groups) for name in _MEANS}
    row = AttributionSummary(
        **dict(zip(SETTINGS, key, strict=True)),
        n=len(entries),
        **means,
        inside_hits=inside(True),
        inside_errors=inside(False),
        deletion_gain=gain("deletion", 1),
        insertion_gain=gain("insertion", -1),
        flat=sum(flat) if flat else None,
        area=float(np.mean(areas)) if areas else None,
        randomisation=_levels([cascade for cascade in cascades if summary_key(cascade) == key]),
    )
    failed = _failed_checks(row)
    unchecked = [title for name, title in _GENERAL_CHECKS.items() if not getattr(row, name)]
    if row.randomisation and row.survives is None:
        unchecked.append(_GENERAL_CHECKS["randomisation"])
    return replace(row, failed=tuple(failed), unchecked=tuple(unchecked), trusted=not failed and not unchecked)


def _levels(cascades: Sequence[ProcessCascade]) -> tuple[RandomisationLevel, ...]:
    """Return the levels in the order of the cascade, averaged over processes weighted by their documents."""
    rows = []
    for name in RANDOMISATION_LEVELS:
        levels = [level for cascade in cascades for level in cascade.levels if level.randomised == name]
        if not levels:  # the method failed at this level
            continue
        weights = [float(max(1, level.documents)) for level in levels]

        def average(kind: str, levels: Sequence[Any] = levels, weights: Sequence[float] = weights) -> float | None:
            values = [getattr(level, kind) for level in levels]
            return None if None in values else float(np.average(values, weights=weights))

        kinds = ("similarity", "absolute_similarity", "structural_similarity")
        rows.append(RandomisationLevel.from_dict({"randomised": name} | {kind: average(kind) for kind in kinds}))
    return tuple(rows)


def _failed_checks(row: AttributionSummary) -> list[str]:
    """Return one sentence for each check that a method fails at a layer."""
    failed = []
    if row.flat:
        failed.append(f"constant for {row.flat} of {row.n} documents: all values are equal")
    gap, stability, inside = row.completeness_gap, row.stability, row.inside
    if gap is not None and is_incomplete(row):
        failed.append(f"incomplete: the sum misses {gap.value:.0%} of the difference; use more steps")
    for gain, title in ((row.deletion_gain, "deletion"), (row.insertion_gain, "insertion")):
        if gain is not None and is_random(gain):
            failed.append(f"{title} no better than a random order{_group_note(gain)}")
    if survives_randomisation(row):
        of = "" if row.survives == row.randomisation[-1].similarity else " of absolute values"
        failed.append(f"survives shuffled weights: rank correlation{of} {row.survives:.2f}")
    if stability is not None and is_unstable(row):
        failed.append(f"unstable: rank correlation {stability.value:.2f} under 5% noise")
    if inside is not None and misses_lesion(row):
        failed.append(f"no more inside the lesion than its share of the picture{_group_note(inside)}")
    return failed


def _group_note(estimate: Estimate) -> str:
    return " (one group, so no interval)" if math.isnan(estimate.low) else ""


def _mean(values: Sequence[float | None], groups: Sequence[str]) -> Estimate | None:
    """Return the mean with its interval over resampled groups, or None where there are no values."""
    known = [(float(value), group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not known:
        return None
    names = sorted({group for _, group in known})
    sums = np.array([sum(value for value, group in known if group == name) for name in names])
    counts = np.array([sum(group == name for _, group in known) for name in names])
    low = high = math.nan
    if len(names) > 1:
        resamples = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
        low, high = np.percentile(sums[resamples].sum(1) / counts[resamples].sum(1), [2.5, 97.5])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def format_summary(index: AttributionIndex) -> str:
    """Return a text table of the summary, one line for each method and layer, and the warnings."""
    titles = ("deletion gain", "inside", "hits", "errors", "area", "stability", "gap", "shuffled", "fails")
    rows = [("method", "layer", "explained", "n", *titles)]
    for row in index.summary:
        rows.append(
            (
                row.method,
                row.layer,
                row.settings,
                str(row.n),
                _format_estimate(row.deletion_gain, interval=True),
                _format_estimate(row.inside),
                _format_estimate(row.inside_hits),
                _format_estimate(row.inside_errors),
                "-" if row.area is None else f"{row.area:.2f}",
                _format_estimate(row.stability),
                _format_estimate(row.completeness_gap),
                "-" if row.survives is None else f"{row.survives:.2f}",
                "; ".join([*row.failed, *(f"{name} not checked" for name in row.unchecked)]) or "nothing",
            )
        )
    return "\n".join([*text_table(rows), *(f"Warning: {warning}" for warning in index.warnings)])


def _format_estimate(estimate: Estimate | None, *, interval: bool = False) -> str:
    if estimate is None:
        return "-"
    if interval and not math.isnan(estimate.low):
        return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
    return f"{estimate.value:.2f}"
