"""An analysis as a few lines for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.probes.analysis import MODULES, Analysis
from medmllm_plugins.probes.diagnosis import TITLES
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.utils.plain_text import text_table


def render(analysis: Analysis) -> str:
    """The verdicts, the Feature Health profile and the curves as text."""
    counts = ", ".join(f"{number} {fold}" for fold, number in analysis.counts.items())
    lines = [
        f"{analysis.task} ({analysis.model}): {counts}; {analysis.groups} groups in the test fold",
        f"  {analysis.headline()}",
        "",
        *_table(
            [("failure mode", "lost", "95 % CI", "verdict", "from", "to")]
            + [
                (
                    f"{one.mode} ({TITLES[one.mode]})",
                    _percent(one.loss.value, signed=True),
                    _interval(one.loss, signed=True),
                    one.verdict,
                    one.before,
                    one.after,
                )
                for one in analysis.diagnosis.effects
            ]
        ),
        "",
        f"  Feature Health: {_profile(analysis)}",
        f"  Semantic mapping: {analysis.mapping.kind}",
        "",
        *_curves(analysis),
    ]
    lines += _repeats(analysis)
    lines += [f"  Warning: {warning}" for warning in analysis.warnings]
    lines.append("  A probe shows that a class can be read off a layer, not that the model uses it.")
    return "\n".join(lines)


def _profile(analysis: Analysis) -> str:
    parts = []
    for module in MODULES:
        for pooling in (MEAN, LAST):
            found = analysis.health_of(module, pooling)
            if found is not None:
                parts.append(f"{module} ({pooling}) {found.score.value:.2f}")
    return " -> ".join([*parts, f"answers {analysis.answer.value:.2f}"])


def _curves(analysis: Analysis) -> list[str]:
    rows = [("layer", "pooling", "accuracy", "95 % CI", "control", "label_permutation", "p Holm", "")]
    for point in analysis.points:
        note = "" if point.key.read else "never read"
        rows.append(
            (
                point.key.layer,
                point.key.pooling,
                _percent(point.accuracy.value),
                _interval(point.accuracy),
                _percent(point.control.value),
                _percent(point.label_permutation),
                "" if math.isnan(point.p_holm) else f"{point.p_holm:.4f}",
                note,
            )
        )
    return [*_table(rows), f"  chance {_percent(analysis.chance)}, majority {_percent(analysis.majority)}"]


def _repeats(analysis: Analysis) -> list[str]:
    """How far the curve's ends move with the division into folds."""
    if not analysis.options.repeats:
        return []
    ends = {(one.key.layer, one.key.pooling): one for one in (analysis.best, *analysis.handed_over())}
    rows = [("layer", "pooling", "accuracy", "mean", "lowest", "highest")]
    for (layer, pooling), one in ends.items():
        mean = sum(one.repeats) / len(one.repeats)
        shown = [_percent(value) for value in (one.accuracy.value, mean, min(one.repeats), max(one.repeats))]
        rows.append((layer, pooling, shown[0], shown[1], shown[2], shown[3]))
    return ["", f"  Divided into folds anew, {analysis.options.repeats} times:", *_table(rows), ""]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in text_table(rows)]


def _percent(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def _interval(found: Estimate, *, signed: bool = False) -> str:
    if math.isnan(found.low):
        return "-"
    return f"{_percent(found.low, signed=signed)} to {_percent(found.high, signed=signed)}"
