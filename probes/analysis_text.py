"""Format a probe analysis as text for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.probes.fitting import LAST_LAYER
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.probe_records import (
    CONCLUSION_TITLES,
    HANDOVER,
    MODULES,
    TITLES,
    Effect,
    ProbeAnalysis,
)
from medmllm_plugins.results.shortcut_records import ShortcutReport
from medmllm_plugins.utils.plain_text import text_table


def headline(analysis: ProbeAnalysis) -> str:
    """Return the result in a few sentences."""
    diagnosis, best = analysis.diagnosis, analysis.best
    sentences = [
        f"Answers {analysis.answer.percent()}, best probe {best.accuracy.percent()} at {best.layer} ({best.pooling})."
    ]
    supported, named = diagnosis.supported, diagnosis.named
    if diagnosis.patched:
        titles = " and ".join(f"{CONCLUSION_TITLES[mode]} ({mode})" for mode in diagnosis.patched)
        sentences.append(f"Twin patching shows {titles}.")
    elif named == HANDOVER:
        sentences.append(
            f"The class can be read up to {diagnosis.readable_until}, and nothing after it uses it ({HANDOVER}). "
            f"Interfaces that may be at fault: {', '.join(diagnosis.candidates)}."
        )
    elif named is not None:
        sentences.append(f"{CONCLUSION_TITLES[named].capitalize()} ({named}): {diagnosis.of(named).why}")
    elif len(supported) > 1:
        sentences.append(
            f"Several stages lose accuracy: {_format_losses(supported)}. No single one is the cause for certain."
        )
    elif supported:
        sentences.append(f"Accuracy is lost, but the cause is not certain: {_format_losses(supported)}.")
    else:
        sentences.append("No failure mode is supported.")
    sentences += diagnosis.reasons
    others = [
        effect for effect in supported if effect.mode != named and not (named == HANDOVER and effect.mode == "mapping")
    ]
    if named is not None and others:
        by = "by probes" if diagnosis.patched else "too"
        sentences.append(f"Supported {by}: {_format_losses(others)}.")
    if diagnosis.undecided:
        sentences.append(f"Undecided: {', '.join(diagnosis.undecided)}.")
    return " ".join(sentences)


def _format_losses(effects: Sequence[Effect]) -> str:
    """Return text such as "connector (7.1 points), mapping (53.0 points)"."""
    return ", ".join(f"{effect.mode} ({100 * effect.loss.value:.1f} points)" for effect in effects)


def render(analysis: ProbeAnalysis) -> str:
    """Return the verdicts, the Feature Health profile and the curves as text."""
    counts = ", ".join(f"{number} {fold}" for fold, number in analysis.counts.items())
    lines = [
        f"{analysis.task} ({analysis.model}): {counts}; {analysis.groups} groups in the test fold",
        f"  {analysis.headline}",
        "",
        *_table(
            [("failure mode", "lost (points)", "95% CI", "bits", "P(loses most)", "verdict", "from", "to")]
            + [
                (
                    f"{effect.mode} ({TITLES[effect.mode]})",
                    _percent(effect.loss.value, signed=True),
                    _interval(effect.loss, signed=True),
                    _bits(effect.bits_lost),
                    "-" if math.isnan(effect.probability) else f"{effect.probability:.2f}",
                    effect.verdict,
                    effect.before,
                    effect.after,
                )
                for effect in analysis.diagnosis.effects
            ]
        ),
        "",
        f"  Feature Health: {_profile(analysis)}",
        f"  Semantic mapping: {'cannot tell' if analysis.mapping is None else analysis.mapping.kind}",
        "",
        *_anchors(analysis.anchors),
        *_curves(analysis),
        *_shortcuts(analysis.shortcuts),
    ]
    lines += _repeats(analysis)
    lines += [f"  Warning: {warning}" for warning in analysis.warnings]
    lines.append("  A probe shows that a class can be read from a layer, not that the model uses it.")
    return "\n".join(lines)


def _anchors(anchors: Anchors | None) -> list[str]:
    """Show the answers to findings in words and to squares drawn on the images."""
    if anchors is None:
        return []
    rows = [("anchor", "prompts", "accuracy (%)", "95% CI", "chance (%)", "parsed (%)", "verdict")]
    for result in anchors.results:
        accuracy, interval = _percent(result.accuracy.value), _interval(result.accuracy)
        shares = (accuracy, interval, _percent(result.chance), _percent(result.parsed))
        rows.append((result.kind, str(result.n), *shares, result.verdict))
    reasons = [f"  No {kind} anchor: {reason}" for kind, reason in anchors.not_run.items()]
    return [*(_table(rows) if anchors.results else ()), *reasons, ""]


def _profile(analysis: ProbeAnalysis) -> str:
    parts = []
    for module in MODULES:
        for pooling in (MEAN, LAST):
            curve = analysis.health_of(module, pooling)
            if curve is not None:
                parts.append(f"{module} ({pooling}) {curve.score.value:.2f}")
    return " -> ".join([*parts, f"answers {analysis.answer.value:.2f}"])


def _curves(analysis: ProbeAnalysis) -> list[str]:
    header = ("layer", "pooling", "accuracy (%)", "95% CI", "balanced", "bits", "control task", "permuted labels")
    rows = [(*header, "p (Holm)", "")]
    for point in analysis.points:
        note = "" if point.read else "never read"
        rows.append(
            (
                point.layer,
                point.pooling,
                _percent(point.accuracy.value),
                _interval(point.accuracy),
                _percent(point.balanced.value),
                _bits(point.bits),
                _percent(point.control.value),
                _percent(point.label_permutation),
                "" if math.isnan(point.p_holm) else f"{point.p_holm:.4f}",
                note,
            )
        )
    return [*_table(rows), f"  chance {_percent(analysis.chance)}%, most common class {_percent(analysis.majority)}%"]


def _shortcuts(report: ShortcutReport | None) -> list[str]:
    """Show what features, other columns of the data, and masked images tell of class and fold."""
    if report is None:
        return []
    rows = [("shortcuts", "class, within train (%)", "class, train to test (%)", "train against test (AUROC)")]
    rows += [
        (check.layer, _percent(check.within_train.value), _percent(check.to_test.value), f"{check.shift:.2f}")
        for check in report.checks
    ]
    return ["", *_table(rows), *_masked(report), *_columns(report), *(f"  Note: {note}" for note in report.notes)]


def _masked(report: ShortcutReport) -> list[str]:
    """Show the accuracies with the border of the images masked."""
    if not report.masked:
        return []
    rows = [("border masked", "pooling", "documents", "shown (%)", "masked (%)", "drop (points)", "95% CI")]
    rows += [
        (
            check.layer,
            check.pooling,
            str(check.n),
            _percent(check.shown.value),
            _percent(check.masked.value),
            _percent(check.drop.value, signed=True),
            _interval(check.drop, signed=True),
        )
        for check in report.masked
    ]
    return ["", *_table(rows)]


def _columns(report: ShortcutReport) -> list[str]:
    """Show what other columns of the data tell of the class, and where they can be read best."""
    rows = [("column", "values", "class from column (%)", "95% CI", "p", "most readable at", "balanced (%)")]
    for column in report.nuisances:
        best = max(column.points, key=lambda point: point.balanced.value, default=None)
        site = ("-", "-") if best is None else (f"{best.layer} ({best.pooling})", _percent(best.balanced.value))
        values = str(len(column.counts)) if column.counts else "numbers"
        rows.append((column.column, values, *_share(column.class_from_column, column.p), *site))
    together = report.columns_together
    if together is not None:
        rows.append(("all together", "-", *_share(together.class_from_columns, together.p), "-", "-"))
    reasons = [f"  Column {column!r} is left out: {reason}." for column, reason in report.left_out.items()]
    return ["", *(_table(rows) if len(rows) > 1 else ()), *reasons] if len(rows) > 1 or reasons else []


def _share(accuracy: Estimate, p: float) -> tuple[str, str, str]:
    return _percent(accuracy.value), _interval(accuracy), f"{p:.4f}"


def _repeats(analysis: ProbeAnalysis) -> list[str]:
    """Show how much the best site and the ends of the stages vary with the division into folds."""
    repeats = len(analysis.best.repeats)
    if not repeats:
        return []
    tower = [point.layer for point in analysis.points if point.part == "vision" and point.read][-1:]
    ends = {("connector", MEAN), (LAST_LAYER, LAST), *((layer, pooling) for layer in tower for pooling in (MEAN, CLS))}
    points = {point.site: point for point in analysis.points if point.site in ends}
    rows: list[tuple[str, ...]] = [("layer", "pooling", "accuracy (%)", "mean", "minimum", "maximum")]
    for point in ({analysis.best.site: analysis.best} | points).values():
        mean = sum(point.repeats) / len(point.repeats)
        values = (point.accuracy.value, mean, min(point.repeats), max(point.repeats))
        rows.append((*point.site, *map(_percent, values)))
    return ["", f"  {repeats} further random divisions into folds:", *_table(rows), ""]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in text_table(rows)]


def _bits(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.value) else f"{estimate.value:.2f}"


def _percent(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    if math.isnan(estimate.low):
        return "-"
    return f"{_percent(estimate.low, signed=signed)} to {_percent(estimate.high, signed=signed)}"
