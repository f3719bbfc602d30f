"""What the checks say of each method at each layer, over all documents that were explained."""

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
"""A path method whose sum misses more than this share of the difference has taken too few steps."""
SURVIVES: Final = 0.5
"""A map is said to survive shuffled weights from this rank correlation on, of its values or of their sizes."""
STABLE: Final = 0.5
DRAWS: Final = 2000
_EVERYWHERE: Final = {
    "deletion_gain": "deletion",
    "insertion_gain": "insertion",
    "stability": "stability",
    "randomisation": "randomisation",
}
"""Checks that any method can be put to at any layer: one that was not made is no check that was passed."""
KEY: Final = ("method", "layer", "mode", "baseline", "steps")
"""Method and layer; what was asked to be explained (decision, truth, answer, a class); and the settings."""
_MEANS: Final = ("completeness_gap", "stability", "inside", "pointing")


def summarise_checks(
    entries: Sequence[Mapping[str, Any]], randomised: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Means with 95 % intervals, by method, layer and settings; which checks failed, and which were not made.

    A method is ``trusted`` at a layer where all that it can be put to were made, and none failed.

    Intervals are percentile intervals of :data:`DRAWS` draws of groups. The gain of deletion is the area for random
    orders less that for the map's, of insertion the map's less the random one: above zero, the map is better.

    What lies inside the lesion is told of hits and of errors as well: a map that explains a wrong decision may well lie
    elsewhere, and be right.

    Args:
        entries: of all documents, methods and layers.
        randomised: what is known of models with shuffled weights, by process, method and layer.
    """
    keys = dict.fromkeys(map(summary_key, entries))
    return [_row(key, [one for one in entries if summary_key(one) == key], randomised) for key in keys]


def summary_key(told: Mapping[str, Any]) -> tuple[Any, ...]:
    """What entries that are counted together have in common, the values of :data:`KEY`."""
    return tuple(told.get(name) for name in KEY)


def _row(
    key: tuple[Any, ...], entries: Sequence[Mapping[str, Any]], randomised: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    groups = [str(entry["group"]) for entry in entries]
    checks = [entry["checks"] for entry in entries]
    hits = [bool(entry["hit"]) for entry in entries]

    def gain(name: str, sign: float) -> list[float | None]:
        pairs = [(one[name], one[f"{name}_random"]) for one in checks]
        return [None if a is None or b is None else sign * (b - a) for a, b in pairs]

    row: dict[str, Any] = {**dict(zip(KEY, key, strict=True)), "n": len(entries)}
    row |= {name: _mean([one[name] for one in checks], groups) for name in _MEANS}
    for name, wanted in (("inside_hits", True), ("inside_errors", False)):
        row[name] = _mean(
            [one["inside"] if hit == wanted else None for one, hit in zip(checks, hits, strict=True)], groups
        )
    row["deletion_gain"] = _mean(gain("deletion", 1), groups)
    row["insertion_gain"] = _mean(gain("insertion", -1), groups)
    areas = [one["area"] for one in checks if one["area"] is not None]
    flat = [bool(one["flat"]) for one in checks if one.get("flat") is not None]
    row["flat"] = sum(flat) if flat else None
    row["area"] = float(np.mean(areas)) if areas else None
    row["randomisation"] = _levels([one for one in randomised if summary_key(one) == key])
    row["failed"] = _failed(row)
    row["unchecked"] = [said for name, said in _EVERYWHERE.items() if not row[name]]
    if row["randomisation"] and _survives(row) is None:
        row["unchecked"].append(_EVERYWHERE["randomisation"])
    row["trusted"] = not row["failed"] and not row["unchecked"]
    return row


def _levels(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Levels of shuffling in the cascade's order, means over processes weighted by their documents."""
    rows = []
    for name in LEVELS:
        own = [level for one in found for level in one["levels"] if level["randomised"] == name]
        if not own:  # the method failed at this level
            continue
        weights = [level["documents"] for level in own]
        shapes = [level["structural_similarity"] for level in own]
        rows.append(
            {
                "randomised": name,
                **{
                    kind: float(np.average([level[kind] for level in own], weights=weights))
                    for kind in ("similarity", "absolute_similarity")
                },
                "structural_similarity": None if None in shapes else float(np.average(shapes, weights=weights)),
            }
        )
    return rows


def _failed(row: Mapping[str, Any]) -> list[str]:
    """One sentence for each check that a method fails at a layer."""
    failed = []
    if row["flat"]:
        failed.append(f"says nothing of {row['flat']} of {row['n']} documents: all values are alike")
    gap = row["completeness_gap"]
    if gap is not None and gap["value"] > GAP_AT_MOST:
        failed.append(f"incomplete: the sum misses {gap['value']:.0%} of the difference; take more steps")
    for name, said in (("deletion_gain", "deletion"), ("insertion_gain", "insertion")):
        found = row[name]
        if found is not None and not _above(found, 0):
            failed.append(f"{said} no better than a random order{_few(found)}")
    last = _survives(row)
    if last is not None and last > SURVIVES:
        of = "" if last == row["randomisation"][-1]["similarity"] else " of sizes"
        failed.append(f"survives shuffled weights: rank correlation{of} {last:.2f}")
    stability = row["stability"]
    if stability is not None and stability["value"] < STABLE:
        failed.append(f"unstable: rank correlation {stability['value']:.2f} under 5 % noise")
    inside = row["inside"]
    if inside is not None and not _above(inside, row["area"]):
        failed.append(f"no more inside the lesion than its share of the picture{_few(inside)}")
    return failed


def _survives(row: Mapping[str, Any]) -> float | None:
    """How like a map still is with all weights shuffled: by its values or by their sizes, whichever is more."""
    last = next((one for one in row["randomisation"] if one["randomised"] == LEVELS[-1]), None)
    return None if last is None else max(last["similarity"], last["absolute_similarity"])


def _above(found: Mapping[str, Any], chance: float) -> bool:
    """Whether the whole interval lies above chance."""
    return found["low"] is not None and found["low"] > chance


def _few(found: Mapping[str, Any]) -> str:
    return "" if found["low"] is not None else ", as far as one group can tell"


def _mean(values: Sequence[Any], groups: Sequence[str]) -> dict[str, float | None] | None:
    """Mean with its interval, groups drawn whole; ``None`` where there are no values."""
    known = [(float(value), group) for value, group in zip(values, groups, strict=True) if value is not None]
    if not known:
        return None
    names = sorted({group for _, group in known})
    sums = np.array([sum(value for value, group in known if group == name) for name in names])
    counts = np.array([sum(group == name for _, group in known) for name in names])
    low = high = math.nan
    if len(names) > 1:
        drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
        low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return {"value": float(sums.sum() / counts.sum()), "low": number(float(low)), "high": number(float(high))}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method and layer, three columns for each figure."""
    figures = (*_MEANS, "inside_hits", "inside_errors", "deletion_gain", "insertion_gain")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
    writer.writerow([*KEY, "n", *ends, "area", "survives", "failed", "unchecked"])
    for row in rows:
        cells = [(row[name] or {}).get(part) for name in figures for part in ("value", "low", "high")]
        told = [row["area"], _survives(row), "; ".join(row["failed"]), "; ".join(row["unchecked"])]
        writer.writerow([*summary_key(row), row["n"], *cells, *told])
    return out.getvalue()


def format_summary(index: Mapping[str, Any]) -> str:
    """For people: a line for each method and layer."""
    titles = ("deletion gain", "inside", "hits", "errors", "area", "stability", "gap", "shuffled", "fails")
    rows = [("method", "layer", "explained", "n", *titles)]
    for row in index["summary"]:
        last = _survives(row)
        rows.append(
            (
                row["method"],
                row["layer"],
                format_settings(row),
                str(row["n"]),
                _told(row["deletion_gain"], interval=True),
                _told(row["inside"]),
                _told(row["inside_hits"]),
                _told(row["inside_errors"]),
                "-" if row["area"] is None else f"{row['area']:.2f}",
                _told(row["stability"]),
                _told(row["completeness_gap"]),
                "-" if last is None else f"{last:.2f}",
                "; ".join([*row["failed"], *(f"{name} not checked" for name in row["unchecked"])]) or "nothing",
            )
        )
    return "\n".join([*text_table(rows), *(f"Warning: {warning}" for warning in index["warnings"])])


def format_settings(row: Mapping[str, Any]) -> str:
    """What is explained, against what, in how many steps, for people."""
    return f"{row.get('mode')}, {row.get('baseline')}, {row.get('steps')}"


def _told(found: Mapping[str, Any] | None, *, interval: bool = False) -> str:
    if found is None:
        return "-"
    if interval and found["low"] is not None:
        return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
    return f"{found['value']:.2f}"
