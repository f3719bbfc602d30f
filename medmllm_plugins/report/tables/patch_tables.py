"""Tables of interventions: what states of another checkpoint and of other documents do to the answers."""

from __future__ import annotations

from typing import Final

from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Row, Table, Value, model_table
from medmllm_plugins.results.interchange_records import InterchangePoint
from medmllm_plugins.results.patch_records import PatchPoint
from medmllm_plugins.results.steering_records import SteeringPoint

_PUSHES: Final = ("probe", "opposite", "random", "permuted")
_DONORS: Final = ("other class", "permuted tokens", "same class", "noise")


def twins_table(dataset: DatasetRuns) -> Table:
    """Tabulate the difference between each model and its twin, where it arises, and the share of each module."""
    rows: list[Row] = []
    for result, patching in dataset.patched():
        shares = {share.module: share.accuracy for share in patching.shares}
        own, other = patching.worse_accuracy, patching.better_accuracy
        if patching.worse == "twin":
            own, other = other, own
        values: tuple[Value, ...] = (
            *(patching.checkpoints.get("twin"), patching.n, patching.groups, own, other, patching.better),
            *(patching.difference, patching.first_breaking or "nowhere", patching.first_restoring or "nowhere"),
            *(" and ".join(patching.stages) or "none", *(shares.get(name) for name in ("vision", "connector", "llm"))),
        )
        rows.append((result, values))
    return model_table(dataset, "twins", rows)


def patches_table(dataset: DatasetRuns) -> Table:
    """Tabulate the effect of each site in both directions."""
    rows: list[Row] = []
    for result, patching in dataset.patched():
        by_site: dict[tuple[str, str], dict[str, PatchPoint]] = {}
        for point in patching.points:
            by_site.setdefault((point.layer, point.tokens), {})[point.direction] = point
        for (layer, tokens), points in by_site.items():
            restoring, breaking = points.get("restore"), points.get("break")
            values: list[Value] = [layer, tokens]
            for one_way in (restoring, breaking):
                values += [None] * 3 if one_way is None else [one_way.accuracy, one_way.effect, one_way.log_odds_effect]
            parsed = [point.parsed for point in points.values()]
            rows.append((result, (*values, min(parsed))))
    return model_table(dataset, "patches", rows)


def interchange_table(dataset: DatasetRuns) -> Table:
    """Tabulate the effect of states of another class at each site, beside its controls."""
    rows: list[Row] = []
    for result, exchanged in dataset.exchanged():
        by_site: dict[tuple[str, str], dict[str, InterchangePoint]] = {}
        for point in exchanged.points:
            by_site.setdefault((point.layer, point.tokens), {})[point.donor] = point
        for (layer, tokens), points in by_site.items():
            other = points.get("other class")
            effects = [points[donor].effect if donor in points else None for donor in _DONORS]
            rows.append((result, (layer, tokens, other.flips if other else None, *effects)))
    return model_table(dataset, "interchange", rows)


def knockout_table(dataset: DatasetRuns) -> Table:
    """Tabulate what the answers lose if the image is hidden in a window of layers."""
    rows: list[Row] = []
    for result, cut in dataset.cut():
        for point in cut.points:
            values = (point.first, point.last, point.queries, point.accuracy, point.lost, point.log_odds_lost)
            rows.append((result, values))
    return model_table(dataset, "knockout", rows)


def steering_table(dataset: DatasetRuns) -> Table:
    """Tabulate what each dose along the probe's direction does, beside its controls."""
    rows: list[Row] = []
    for result, steering in dataset.steered():
        by_dose: dict[tuple[str, str, float], dict[str, SteeringPoint]] = {}
        for point in steering.points:
            by_dose.setdefault((point.layer, point.tokens, point.dose), {})[point.direction] = point
        for (layer, tokens, dose), points in by_dose.items():
            shifts = [points[name].shift if name in points else None for name in _PUSHES]
            probe = points.get("probe")
            names = ("flips", "on_labels", "parsed", "perplexity")
            rest = [None if probe is None else getattr(probe, name) for name in names]
            rows.append((result, (layer, tokens, dose, *shifts, *rest)))
    return model_table(dataset, "steering", rows)


def interventions_table(dataset: DatasetRuns) -> Table:
    """Tabulate what the answers lose under interventions of plugins."""
    rows: list[Row] = [
        (result, (each.name, point.condition, point.accuracy, point.lost, point.log_odds_lost))
        for result, results in dataset.intervened()
        for each in results.results
        for point in each.points
    ]
    return model_table(dataset, "interventions", rows)
