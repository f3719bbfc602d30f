"""Summary of the checks of each method at each layer, over all explained documents."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from medmllm_plugins.attribution.checks.randomisation import LEVELS
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.utils.plain_text import text_table

GAP_AT_MOST: Final = 0.05
"""Largest completeness gap of a path method with enough steps."""
SURVIVES: Final = 0.5
"""Rank correlation, of values or absolute values, from which a map is said to survive shuffled weights."""
STABLE: Final = 0.5
"""Smallest rank correlation under noise of a stable map."""
RESAMPLES: Final = 2000
"""Bootstrap resamples of groups."""
KEY: Final = ("method", "layer", "mode", "baseline", "steps")
"""Method, layer, what is explained (decision, truth, answer, a class), and the settings."""
_GENERAL_CHECKS: Final = {
    "deletion_gain": "deletion",
    "insertion_gain": "insertion",
    "stability": "stability",
    "randomisation": "randomisation",
}
"""Checks that apply to every method at every layer; a method is trusted only if all of them were made."""
_MEANS: Final = ("completeness_gap", "stability", "inside", "pointing")


def summarise_checks(
    entries: Sequence[Mapping[str, Any]], randomised: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return means with 95% intervals by method, layer and settings, with the checks that failed or are missing.

    A method is ``trusted`` at a layer if all general checks were made and none failed. Intervals are percentile
    intervals over :data:`RESAMPLES` bootstrap resamples of groups. The deletion gain is the area for random orders
    minus that for the map's order, the insertion gain the opposite: above zero, the map is better. ``inside`` is also
    given for correct answers and for errors, since a map of a wrong decision may be outside the lesion and be right.

    Args:
        entries: Entries of all documents, methods and layers.
        randomised: Similarities under shuffled weights, by process, method and layer.
    """
    entries_of: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for entry in entries:
        entries_of.setdefault(summary_key(entry), []).append(entry)
    return [_row(key, members, randomised) for key, members in entries_of.items()]


def summary_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values of :data:`KEY`, which entries of one row share."""
    return tuple(record.get(name) for name in KEY)


def _row(
    key: tuple[Any, ...], entries: Sequence[Mapping[str, Any]], randomised: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    groups = [str(entry["group"]) for entry in entries]
    checks = [entry["checks"] for entry in entries]
    hits = [bool(entry["hit"]) for entry in entries]

    def gain(name: str, sign: float) -> list[float | None]:
        pairs = [(check[name], check[f"{name}_random"]) for check in checks]
        return [None if area is None or random is None else sign * (random - area) for area, random in pairs]

    def inside(hit: bool) -> list[float | None]:
        return [check["inside"] if was_hit == hit else None for check, was_hit in zip(checks, hits, strict=True)]

    row: dict[str, Any] = {**dict(zip(KEY, key, strict=True)), "n": len(entries)}
    row |= {name: _mean([check[name] for check in checks], groups) for name in _MEANS}
    row |= {"inside_hits": _mean(inside(True), groups), "inside_errors": _mean(inside(False), groups)}
    row |= {"deletion_gain": _mean(gain("deletion", 1), groups), "insertion_gain": _mean(gain("insertion", -1), groups)}
    areas = [check["area"] for check in checks if check["area"] is not None]
    flat = [bool(check["flat"]) for check in checks if check.get("flat") is not None]
    row["flat"] = sum(flat) if flat else None
    row["area"] = float(np.mean(areas)) if areas else None
    row["randomisation"] = _levels([record for record in randomised if summary_key(record) == key])
    row["failed"] = _failed_checks(row)
    row["unchecked"] = [title for name, title in _GENERAL_CHECKS.items() if not row[name]]
    if row["randomisation"] and _surviving_correlation(row) is None:
        row["unchecked"].append(_GENERAL_CHECKS["randomisation"])
    row["trusted"] = not row["failed"] and not row["unchecked"]
    return row


def _levels(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the levels in the order of the cascade, averaged over processes weighted by their documents."""
    rows = []
    for name in LEVELS:
        levels = [level for record in records for level in record["levels"] if level["randomised"] == name]
        if not levels:  # the method failed at this level
            continue
        weights = [level["documents"] for level in levels]
        row: dict[str, Any] = {"randomised": name}
        for kind in ("similarity", "absolute_similarity", "structural_similarity"):
            values = [level[kind] for level in levels]
            row[kind] = None if None in values else float(np.average(values, weights=weights))
        rows.append(row)
    return rows


def _failed_checks(row: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each check that a method fails at a layer."""
    failed = []
    if row["flat"]:
        failed.append(f"constant for {row['flat']} of {row['n']} documents: all values are equal")
    gap = row["completeness_gap"]
    if gap is not None and gap["value"] > GAP_AT_MOST:
        failed.append(f"incomplete: the sum misses {gap['value']:.0%} of the difference; use more steps")
    for name, title in (("deletion_gain", "deletion"), ("insertion_gain", "insertion")):
        gain = row[name]
        if gain is not None and not _is_above(gain, 0):
            failed.append(f"{title} no better than a random order{_group_note(gain)}")
    correlation = _surviving_correlation(row)
    if correlation is not None and correlation > SURVIVES:
        of = "" if correlation == row["randomisation"][-1]["similarity"] else " of absolute values"
        failed.append(f"survives shuffled weights: rank correlation{of} {correlation:.2f}")
    stability = row["stability"]
    if stability is not None and stability["value"] < STABLE:
        failed.append(f"unstable: rank correlation {stability['value']:.2f} under 5% noise")
    inside = row["inside"]
    if inside is not None and not _is_above(inside, row["area"]):
        failed.append(f"no more inside the lesion than its share of the picture{_group_note(inside)}")
    return failed


def _surviving_correlation(row: Mapping[str, Any]) -> float | None:
    """Return the rank correlation with all weights shuffled, of values or of absolute values, whichever is larger."""
    last = next((level for level in row["randomisation"] if level["randomised"] == LEVELS[-1]), None)
    return None if last is None else max(last["similarity"], last["absolute_similarity"])


def _is_above(estimate: Mapping[str, Any], chance: float) -> bool:
    """Return whether the whole interval is above chance."""
    return estimate["low"] is not None and estimate["low"] > chance


def _group_note(estimate: Mapping[str, Any]) -> str:
    return "" if estimate["low"] is not None else " (one group, so no interval)"


def _mean(values: Sequence[Any], groups: Sequence[str]) -> dict[str, float | None] | None:
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
    return {"value": float(sums.sum() / counts.sum()), "low": number(float(low)), "high": number(float(high))}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a CSV row for each method and layer, with three columns for each figure."""
    figures = (*_MEANS, "inside_hits", "inside_errors", "deletion_gain", "insertion_gain")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
    writer.writerow([*KEY, "n", *columns, "area", "survives", "failed", "unchecked"])
    for row in rows:
        cells = [(row[name] or {}).get(part) for name in figures for part in ("value", "low", "high")]
        checks = [row["area"], _surviving_correlation(row), "; ".join(row["failed"]), "; ".join(row["unchecked"])]
        writer.writerow([*summary_key(row), row["n"], *cells, *checks])
    return out.getvalue()


def format_summary(index: Mapping[str, Any]) -> str:
    """Return a text table of the summary, one line for each method and layer, and the warnings."""
    titles = ("deletion gain", "inside", "hits", "errors", "area", "stability", "gap", "shuffled", "fails")
    rows = [("method", "layer", "explained", "n", *titles)]
    for row in index["summary"]:
        correlation = _surviving_correlation(row)
        rows.append(
            (
                row["method"],
                row["layer"],
                format_settings(row),
                str(row["n"]),
                _format_estimate(row["deletion_gain"], interval=True),
                _format_estimate(row["inside"]),
                _format_estimate(row["inside_hits"]),
                _format_estimate(row["inside_errors"]),
                "-" if row["area"] is None else f"{row['area']:.2f}",
                _format_estimate(row["stability"]),
                _format_estimate(row["completeness_gap"]),
                "-" if correlation is None else f"{correlation:.2f}",
                "; ".join([*row["failed"], *(f"{name} not checked" for name in row["unchecked"])]) or "nothing",
            )
        )
    return "\n".join([*text_table(rows), *(f"Warning: {warning}" for warning in index["warnings"])])


def format_settings(row: Mapping[str, Any]) -> str:
    """Return what is explained, the baseline and the number of steps."""
    return f"{row.get('mode')}, {row.get('baseline')}, {row.get('steps')}"


def _format_estimate(estimate: Mapping[str, Any] | None, *, interval: bool = False) -> str:
    if estimate is None:
        return "-"
    if interval and estimate["low"] is not None:
        return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
    return f"{estimate['value']:.2f}"
