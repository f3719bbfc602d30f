"""Tables of what stands between image and answer: failure modes, layers, semantic mapping, attributions."""

from __future__ import annotations

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.run_collection import DataPart, Subject
from medmllm_plugins.report.tables.report_table import Column, Table, Value
from medmllm_plugins.results.attribution_results import GAINS
from medmllm_plugins.results.probe_records import RECALIBRATIONS, TITLES, ProbePoint


def diagnosis_table(part: DataPart) -> Table:
    """The four failure modes of each probed model."""
    columns = (
        Column("Model", "model"),
        Column("Failure mode", "mode"),
        Column("Lost", "loss", "gap"),
        Column("Verdict", "verdict"),
        Column("From", "before"),
        Column("To", "after"),
        Column("Why", "why"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.probed():
        probing = cell.task.probing
        assert probing is not None
        for one in probing.diagnosis.effects:
            verdict = f"{one.verdict} (named)" if one.mode == probing.diagnosis.named else one.verdict
            title = f"{one.mode}: {TITLES[one.mode]}"
            rows.append((cell.subject.label, title, one.loss, verdict, one.before, one.after, one.why))
            owners.append(cell.subject.number)
    return Table(
        f"{part.name}.diagnosis",
        f"{part.title}: four failure modes",
        columns,
        tuple(rows),
        tuple(owners),
        "Lost: accuracy points from one stage to the next. The rules stand in docs/diagnosis.md.",
    )


def modes_table(part: DataPart) -> Table:
    """The failure modes of several models side by side: what each loses where."""
    columns = (
        Column("Model", "model"),
        Column("Answers", "answers", "share"),
        Column("Best probe", "probe", "share"),
        *(Column(f"Lost: {mode}", f"lost_{mode}", "gap") for mode in TITLES),
        Column("Supported", "supported"),
        Column("Named", "named"),
        Column("Semantic mapping", "mapping"),
    )
    rows: list[tuple[Value, ...]] = []
    for cell in part.probed():
        found = cell.task.probing
        assert found is not None
        lost: dict[str, Estimate] = {one.mode: one.loss for one in found.diagnosis.effects}
        supported = ", ".join(one.mode for one in found.diagnosis.supported) or "none"
        rows.append(
            (
                cell.subject.label,
                found.answer,
                found.best.accuracy,
                *(lost.get(mode) for mode in TITLES),
                supported,
                found.diagnosis.named or "none",
                found.mapping.kind if found.mapping else None,
            )
        )
    owners = tuple(cell.subject.number for cell in part.probed())
    return Table(f"{part.name}.modes", f"{part.title}: what is lost where", columns, tuple(rows), owners)


def health_table(part: DataPart) -> Table:
    """The Feature Health profile: a score a module, and the answers' accuracy at the end."""
    columns = (
        Column("Model", "model"),
        Column("Module", "module"),
        Column("Pooling", "pooling"),
        Column("Score", "score", "decimal"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.probed():
        probing = cell.task.probing
        assert probing is not None
        told: list[tuple[Value, ...]] = [(one.module, one.pooling, one.score) for one in probing.health]
        for row in [*told, ("answers", "", probing.answer)]:
            rows.append((cell.subject.label, *row))
            owners.append(cell.subject.number)
    return Table(f"{part.name}.health", f"{part.title}: Feature Health", columns, tuple(rows), tuple(owners))


def curves_table(part: DataPart) -> Table:
    """Every point of the layer curves with its controls."""
    columns = (
        Column("Model", "model"),
        Column("Layer", "layer"),
        Column("Pooling", "pooling"),
        Column("Width", "width", "count"),
        Column("Read", "read"),
        Column("Accuracy", "accuracy", "share"),
        Column("Balanced", "balanced", "share"),
        Column("Control task", "control", "share"),
        Column("Selectivity", "selectivity", "gap"),
        Column("Shuffled, mean", "label_permutation", "share"),
        Column("Shuffled, 95th", "label_permutation_high", "share"),
        Column("p (Holm)", "p_holm", "p"),
    )

    def row(subject: Subject, one: ProbePoint) -> tuple[Value, ...]:
        read = "yes" if one.read else "never read"
        place: tuple[Value, ...] = (subject.label, one.layer, one.pooling, one.width, read)
        return (
            *place,
            one.accuracy,
            one.balanced,
            one.control,
            one.selectivity,
            one.label_permutation,
            one.label_permutation_high,
            one.p_holm,
        )

    pairs = [(cell.subject, one) for cell in part.probed() if cell.task.probing for one in cell.task.probing.points]
    return Table(
        f"{part.name}.curves",
        f"{part.title}: probes of every layer",
        columns,
        tuple(row(subject, one) for subject, one in pairs),
        tuple(subject.number for subject, _ in pairs),
        "Shuffled: balanced accuracy of probes of shuffled labels. Layers “never read” are layers of the tower that the "
        "answer does not depend on.",
    )


def mapping_table(part: DataPart) -> Table:
    """Semantic mapping: the gap between features and words, and what each re-reading recovers."""
    columns = (
        Column("Model", "model"),
        Column("Kind", "kind"),
        Column("Reading", "reading"),
        Column("Accuracy", "accuracy", "share"),
        Column("Gain", "gain", "gap"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.probed():
        found = cell.task.probing.mapping if cell.task.probing else None
        if found is None:
            continue
        own: list[tuple[Value, ...]] = [
            ("answers as they are", found.answer, None),
            ("probe of the last token (gain: mapping gap)", found.probe, found.mapping_gap),
            *((RECALIBRATIONS[name], one.accuracy, one.gain) for name, one in found.readings.items()),
        ]
        rows += [(cell.subject.label, found.kind, *one) for one in own]
        owners += [cell.subject.number] * len(own)
    return Table(
        f"{part.name}.mapping",
        f"{part.title}: semantic mapping",
        columns,
        tuple(rows),
        tuple(owners),
        "Re-readings are fitted on the validation fold and scored on the test fold. Gain: over what is re-read, the "
        "answers or the label that scores highest.",
    )


def attribution_table(part: DataPart) -> Table:
    """How attribution methods stood their checks, at each layer."""
    shares = {"inside", "pointing"}
    columns = (
        Column("Model", "model"),
        Column("Method", "method"),
        Column("Layer", "layer"),
        Column("Explained", "how"),
        Column("n", "n", "count"),
        Column("Checks failed", "failed", "count"),
        Column("Not checked", "unchecked"),
        *(Column(title.capitalize(), name, "share" if name in shares else "decimal") for name, title in GAINS.items()),
        Column("Mask's share of the area", "area", "share"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        if cell.task.attributions is None:
            continue
        for one in cell.task.attributions.summary:
            figures = (one.figures[name] for name in GAINS)
            told = (cell.subject.label, one.method, one.layer, one.how)
            rows.append((*told, one.n, len(one.failed), ", ".join(one.unchecked) or None, *figures, one.area))
            owners.append(cell.subject.number)
    return Table(
        f"{part.name}.attributions",
        f"{part.title}: checks of the attributions",
        columns,
        tuple(rows),
        tuple(owners),
        "Which checks failed, and how, is said under “How it was made”.",
    )
