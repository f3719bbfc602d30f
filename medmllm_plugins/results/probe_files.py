"""A probe analysis as files: ``TASK.probes.json`` with everything, and tidy tables as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.results.file_names import PROBE_CURVES, PROBE_EFFECTS, PROBES
from medmllm_plugins.results.probe_records import ProbeAnalysis, ProbePoint
from medmllm_plugins.results.shortcut_records import Nuisance
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

SUFFIXES: Final = (PROBES, PROBE_CURVES, PROBE_EFFECTS)
"""Endings of all files that :func:`write_probes` writes."""
CURVE_COLUMNS: Final = ("layer", "part", "pooling", "width", "read", "fold", "metric", "value", "low", "high")
SHORTCUT_COLUMNS: Final = ("kind", "name", "pooling", "value", "metric", "figure", "low", "high")
EFFECT_COLUMNS: Final = (
    *("mode", "loss", "low", "high", "balanced_loss", "bits_lost", "probability", "verdict", "named"),
    *("before", "after", "why", "conclusion"),
)


def write_probes(folder: Path, stem: str, analysis: ProbeAnalysis) -> list[Path]:
    """Write an analysis into a run folder.

    Returns:
        The files: JSON, the curves (a row for each site, fold and metric), and the four failure modes.

    Raises:
        OSError: the folder cannot be written.
    """
    texts = {
        PROBES: json.dumps(analysis.to_dict(), indent=2, ensure_ascii=False) + "\n",
        PROBE_CURVES: csv_text(CURVE_COLUMNS, map(_lower_case, curve_rows(analysis.points))),
        PROBE_EFFECTS: csv_text(EFFECT_COLUMNS, map(_lower_case, effect_rows(analysis))),
    }
    for suffix, text in texts.items():
        write_whole(folder / f"{stem}{suffix}", text)
    return [folder / f"{stem}{suffix}" for suffix in texts]


def read_probes(folder: Path, stem: str) -> ProbeAnalysis | None:
    """Return the analysis in a task's ``TASK.probes.json``; ``None`` where there is no file.

    Raises:
        DataError: the file is damaged, or of a newer version.
    """
    path = folder / f"{stem}{PROBES}"
    try:
        return ProbeAnalysis.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: expected the results of probes, got {error}. Run the task again.") from error


def curve_rows(points: Iterable[ProbePoint]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of curves, with the columns :data:`CURVE_COLUMNS`."""
    for point in points:
        site = (point.layer, point.part, point.pooling, point.width, point.read)
        for name in ("accuracy", "balanced", "bits", "corrected", "control", "selectivity"):
            yield (*site, "test", name, *getattr(point, name).to_dict().values())
        for name in ("label_permutation", "label_permutation_high", "p", "p_holm"):
            yield (*site, "test", name, number(getattr(point, name)), None, None)
        yield (*site, "validation", "accuracy", number(point.validation), None, None)
        for index, value in enumerate(point.repeats, start=1):
            yield (*site, f"repeat {index}", "accuracy", number(value), None, None)


def effect_rows(analysis: ProbeAnalysis) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of failure modes, with the columns :data:`EFFECT_COLUMNS`."""
    for effect in analysis.diagnosis.effects:
        named = effect.mode == analysis.diagnosis.named
        losses = (number(effect.balanced_loss.value), number(effect.bits_lost.value), number(effect.probability))
        sites = (effect.before, effect.after, effect.why, analysis.diagnosis.named)
        yield (effect.mode, *effect.loss.to_dict().values(), *losses, effect.verdict, named, *sites)


def shortcut_rows(analysis: ProbeAnalysis) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of shortcuts and nuisance, with the columns :data:`SHORTCUT_COLUMNS`."""
    report = analysis.shortcuts
    if report is None:
        return
    for check in report.checks:
        site = ("features", check.layer, check.pooling, None)
        for name in ("within_train", "to_test", "drop"):
            yield (*site, name, *getattr(check, name).to_dict().values())
        for name in ("shift", "p_within_train", "p_to_test", "p_drop", "p_shift"):
            yield (*site, name, number(getattr(check, name)), None, None)
    for masked in report.masked:
        for name in ("shown", "masked", "drop"):
            yield ("masked", masked.layer, masked.pooling, None, name, *getattr(masked, name).to_dict().values())
    if report.columns_together is not None:
        together = ("nuisance", "all columns", None, None)
        yield (*together, "class_from_columns", *report.columns_together.class_from_columns.to_dict().values())
        yield (*together, "p", number(report.columns_together.p), None, None)
    for nuisance in report.nuisances:
        yield from _nuisance_rows(nuisance)


def _nuisance_rows(nuisance: Nuisance) -> Iterator[tuple[Any, ...]]:
    column = ("nuisance", nuisance.column, None, None)
    for name in ("class_from_column", "within"):
        yield (*column, name, *getattr(nuisance, name).to_dict().values())
    for name in ("majority", "chance", "p"):
        yield (*column, name, number(getattr(nuisance, name)), None, None)
    for point in nuisance.points:
        site = ("nuisance", nuisance.column, point.pooling, point.layer)
        yield (*site, "balanced", *point.balanced.to_dict().values())
        yield (*site, "p", number(point.p), None, None)
        yield (*site, "p_holm", number(point.p_holm), None, None)
    for stratum in nuisance.strata:
        for name in ("n", "probe", "majority"):
            yield ("stratum", nuisance.column, None, stratum.value, name, getattr(stratum, name), None, None)


def _lower_case(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row with ``true`` and ``false`` as JSON writes them."""
    return tuple(str(cell).lower() if isinstance(cell, bool) else cell for cell in row)
