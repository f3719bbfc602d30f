"""Tables of a model's stages: failure modes, layers, semantic mapping and attributions."""

from __future__ import annotations

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.display_names import CHECKS
from medmllm_plugins.report.formatting import cut, percent
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Column, Row, Table, model_table, read_columns
from medmllm_plugins.results.probe_records import RECALIBRATIONS, TITLES


def diagnosis_table(dataset: DatasetRuns) -> Table:
    """Tabulate the four failure modes of each probed model."""
    rows: list[Row] = []
    for result, probing in dataset.probed():
        for effect in probing.diagnosis.effects:
            verdict = f"{effect.verdict} (loses most)" if effect.mode == probing.diagnosis.named else effect.verdict
            mode = f"{effect.mode}: {TITLES[effect.mode]}"
            losses = (effect.loss, effect.balanced_loss, effect.bits_lost, effect.probability)
            rows.append((result, (mode, *losses, verdict, effect.before, effect.after, effect.why)))
    return model_table(dataset, "diagnosis", rows)


def stages_table(dataset: DatasetRuns) -> Table:
    """Tabulate what is known of the class at the end of each stage."""
    rows: list[Row] = []
    for result, probing in dataset.probed():
        for stage in probing.diagnosis.stages:
            figures = (stage.own, stage.accuracy, stage.balanced, stage.bits)
            rows.append((result, (stage.stage, stage.source, *figures)))
    return model_table(dataset, "stages", rows)


def anchors_table(dataset: DatasetRuns) -> Table:
    """Tabulate the answers to the anchors: the finding in words, and squares drawn on the images."""
    rows: list[Row] = []
    for result, probing in dataset.probed():
        for anchor in probing.anchors.results if probing.anchors else ():
            recalls = ", ".join(f"{cut(label, 40)} {percent(recall)}" for label, recall in anchor.recalls.items())
            counts = (anchor.kind, anchor.n, anchor.groups)
            shares = (anchor.accuracy, anchor.chance, anchor.parsed)
            rows.append((result, (*counts, *shares, recalls, anchor.verdict)))
    return model_table(dataset, "anchors", rows)


def modes_table(dataset: DatasetRuns) -> Table:
    """Tabulate the failure modes of several models side by side: the loss of each model at each stage."""
    columns = (
        Column("Answers", "answers", "share"),
        Column("Best probe", "probe", "share"),
        *(Column(f"Loss: {mode}", f"lost_{mode}", "difference") for mode in TITLES),
        Column("Supported", "supported"),
        Column("Conclusion", "named"),
        Column("Semantic mapping", "mapping"),
    )
    rows: list[Row] = []
    for result, probing in dataset.probed():
        losses: dict[str, Estimate] = {effect.mode: effect.loss for effect in probing.diagnosis.effects}
        values = (
            probing.answer,
            probing.best.accuracy,
            *(losses.get(mode) for mode in TITLES),
            ", ".join(effect.mode for effect in probing.diagnosis.supported) or "none",
            probing.diagnosis.named or "none",
            probing.mapping.kind if probing.mapping else None,
        )
        rows.append((result, values))
    return model_table(dataset, "modes", rows, columns)


def health_table(dataset: DatasetRuns) -> Table:
    """Tabulate the Feature Health Score of each module, and the accuracy of the answers."""
    rows: list[Row] = []
    for result, probing in dataset.probed():
        rows += [(result, (module.module, module.pooling, module.score)) for module in probing.health]
        rows.append((result, ("answers", "", probing.answer)))
    return model_table(dataset, "health", rows)


def curves_table(dataset: DatasetRuns) -> Table:
    """Tabulate every probe with its controls."""
    rows: list[Row] = []
    for result, probing in dataset.probed():
        for point in probing.points:
            site = (point.layer, point.pooling, point.width, "yes" if point.read else "no")
            controls = (point.control, point.selectivity, point.label_permutation, point.label_permutation_high)
            figures = (point.accuracy, point.balanced, point.bits)
            rows.append((result, (*site, *figures, *controls, point.p_holm)))
    return model_table(dataset, "curves", rows)


def mapping_table(dataset: DatasetRuns) -> Table:
    """Tabulate the gap between probe and answers, and the accuracy that each output recalibration gains."""
    rows: list[Row] = []
    for result, semantic in dataset.mapped():
        rows.append((result, (semantic.kind, "answers without recalibration", semantic.answer, None)))
        probe = "probe of the last token (gain: mapping gap)"
        rows.append((result, (semantic.kind, probe, semantic.probe, semantic.mapping_gap)))
        for name, reading in semantic.readings.items():
            rows.append((result, (semantic.kind, RECALIBRATIONS[name], reading.accuracy, reading.gain)))
    return model_table(dataset, "mapping", rows)


def attribution_table(dataset: DatasetRuns) -> Table:
    """Tabulate the checks of each attribution method at each layer."""
    columns = (
        *read_columns("attributions"),
        *(
            Column(title.capitalize(), name, "share" if name in ("inside", "pointing") else "decimal")
            for name, title in CHECKS.items()
        ),
        Column("Mask's share of the area", "area", "share"),
    )
    rows: list[Row] = []
    for row in dataset.attribution_summaries():
        summary = row.summary
        unchecked = ", ".join(summary.unchecked) or None
        facts = (summary.method, summary.layer, summary.settings, summary.n, len(summary.failed), unchecked)
        rows.append((row.result, (*facts, *(summary.figure(name) for name in CHECKS), summary.area)))
    return model_table(dataset, "attributions", rows, columns)
