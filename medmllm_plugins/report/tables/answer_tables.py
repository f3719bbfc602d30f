"""Tables of the answers: metrics, classes, parsing, and what changes with question and image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.report.run_pairs import Difference
from medmllm_plugins.report.tables.report_table import Column, Table, Value
from medmllm_plugins.report.verdict import BLIND_BASELINES, Verdict, blind_baseline
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence, whole

Control: TypeAlias = tuple[Cell, Cell | None, Estimate]
"""A blind control, the task that it is held against (the same question with the image shown; ``None`` where that was
not asked), and the paired difference: shown less blind."""
METRICS: Final = {
    "accuracy": "Accuracy",
    "balanced": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "Average precision",
    "kappa": "Quadratic kappa",
    "ece": "Calibration error",
    "brier": "Brier score",
    "parsed": "Parsed",
}
"""Metrics in the order of columns, shares of 1 apart from those of :data:`DECIMALS`."""
DECIMALS: Final = frozenset({"macro_f1", "f1", "mcc", "auroc", "auprc", "kappa", "ece", "brier"})
FORMS: Final = {
    "sum": "sum of log-probabilities",
    "mean": "mean over a label's tokens",
    "calibrated": "sum less that of a blank image",
}
"""Forms of the label scores, as :mod:`medmllm_plugins.metrics.label_scores` names them."""
_OF_FINDINGS: Final = (
    " Each question is about one finding; accuracy is of all questions, “all findings right” of whole documents, and "
    "the others are means over the findings that some documents have and others do not."
)
_STATUSES: Final = ("parsed", "ambiguous", "out_of_list", "refusal")


def metrics_table(part: DataPart, found: Sequence[Verdict]) -> Table:
    """All metrics of all tasks of a data set, with the gaps to blind answers and to the reference classifier."""
    by_number = {one.subject.number: one for one in found}
    main = {id(part.main(one)) for one in part.subjects}
    # What a model is worth stands first; other questions and blind controls follow.
    cells = sorted(
        (cell for cell in part.cells if cell.task.scored),
        key=lambda cell: (id(cell) not in main, not cell.task.plain, cell.task.image != "shown", cell.subject.number),
    )
    present = [name for name in METRICS if name != "accuracy" and any(known(cell.metrics.get(name)) for cell in cells)]
    gaps = any(one.reference.compared for one in found)
    # Accuracy stands beside the name: a phone shows no more than these two.
    columns = [Column("Model", "model"), Column(METRICS["accuracy"], "accuracy", "share"), Column("Task", "task")]
    columns += [Column("Questions", "n", "count"), Column("Groups", "groups", "count")]
    columns += [Column("Blind answer", "blind", "share")]
    columns += [Column("Over blind", "over_blind", "gap")]
    columns += [Column("Over reference", "over_reference", "gap")] if gaps else []
    columns += [Column(METRICS[name], name, "decimal" if name in DECIMALS else "share") for name in present]
    of_findings = any(cell.multilabel for cell in cells)
    columns += [Column("All findings right", "exact_match", "share")] if of_findings else []
    rows: list[tuple[Value, ...]] = []
    for cell in cells:
        told = cell.task.metrics
        verdict = by_number.get(cell.subject.number)
        mine = verdict if verdict is not None and verdict.cell is cell else None
        row: list[Value] = [cell.subject.label, cell.metrics.get("accuracy"), cell.task.name]
        row += [whole(told.get("n")), whole(told.get("n_groups")), blind_baseline(cell)[1]]
        row += [mine.blind.gap if mine else None]
        row += [mine.reference.gap if mine and mine.reference.compared else None] if gaps else []
        row += [cell.metrics.get(name) for name in present]
        row += [Estimate.from_dict(told.get("exact_match"))] if of_findings else []
        rows.append(tuple(row))
    return Table(
        f"{part.name}.metrics",
        f"{part.title}: metrics",
        tuple(columns),
        tuple(rows),
        tuple(cell.subject.number for cell in cells),
        "Shares and differences in percent, with 95 % intervals (cluster bootstrap over groups). Blind answer: "
        f"accuracy of {_blind_names(cells)}, on the row's questions. “Over blind” and “over reference” are paired "
        "differences of accuracy, over the questions on record that both answered."
        + (_OF_FINDINGS if of_findings else ""),
    )


def _blind_names(cells: Sequence[Cell]) -> str:
    names = dict.fromkeys(BLIND_BASELINES[name] for cell in cells if (name := blind_baseline(cell)[0]))
    return " or ".join(names) or "an answer that knows nothing of the image"


def differences_table(part: DataPart, pairs: Sequence[Difference]) -> Table:
    """Every two models that were asked about the same classes of the same data, and by how much they differ."""
    columns = (
        Column("Model", "model"),
        Column("Task", "task"),
        Column("Held against", "other"),
        Column("Its task", "other_task"),
        Column("Questions of both", "n", "count"),
        Column("Accuracy", "accuracy", "share"),
        Column("Accuracy of the other", "other_accuracy", "share"),
        Column("Difference", "difference", "gap"),
    )
    rows: list[tuple[Value, ...]] = []
    for one in pairs:
        names = (one.first.subject.label, one.first.task.name, one.second.subject.label, one.second.task.name)
        rows.append((*names, one.shared, one.mean + one.gap.value, one.mean, one.gap))
    return Table(
        f"{part.name}.differences",
        f"{part.title}: models against each other",
        columns,
        tuple(rows),
        tuple(one.first.subject.number for one in pairs),
        "Accuracy over the questions that both answered, and its paired difference in percentage points. An interval "
        "that holds zero does not tell the two apart; intervals are not corrected for the number of pairs.",
    )


def class_table(part: DataPart) -> Table:
    """Figures of each class of each model's main task; findings have a table of their own."""
    columns = (
        Column("Model", "model"),
        Column("Class", "class"),
        Column("n", "n", "count"),
        Column("Sensitivity", "sensitivity", "share"),
        Column("Specificity", "specificity", "share"),
        Column("Precision", "precision", "share"),
        Column("F1", "f1", "decimal"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in mains_of(part):
        told = cell.task.metrics
        for one in map(mapping, sequence(told.get("per_class"))):
            rows.append(
                (
                    cell.subject.label,
                    cut(one.get("label") or ""),
                    whole(one.get("n")),
                    Estimate.from_dict(one.get("sensitivity")),
                    Estimate.from_dict(one.get("specificity")),
                    number(one.get("precision")),
                    Estimate.from_dict(one["f1"]) if isinstance(one.get("f1"), dict) else number(one.get("f1")),
                )
            )
            owners.append(cell.subject.number)
    return Table(f"{part.name}.classes", f"{part.title}: each class", columns, tuple(rows), tuple(owners))


def parsing_table(part: DataPart) -> Table:
    """Shares of answers that were parsed, ambiguous, out of list or refusals."""
    titles = ("Parsed", "Ambiguous", "Out of list", "Refusal")
    columns = (
        Column("Model", "model"),
        Column("Task", "task"),
        Column("Answers", "n", "count"),
        *(Column(title, name, "share") for title, name in zip(titles, _STATUSES, strict=True)),
        Column("Accuracy of the parsed", "accuracy_on_parsed", "share"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        if not cell.task.scored:
            continue
        counts = statuses(cell)
        total = sum(counts.values())
        told = cell.task.metrics.get("accuracy_on_parsed")
        shares: list[Value] = [counts[name] / total if total else math.nan for name in _STATUSES]
        rows.append((cell.subject.label, cell.task.name, total, *shares, Estimate.from_dict(told)))
        owners.append(cell.subject.number)
    return Table(
        f"{part.name}.parsing", f"{part.title}: what answers could be read", columns, tuple(rows), tuple(owners)
    )


def statuses(cell: Cell) -> dict[str, int]:
    """Number of answers of each status, over all variants of a task."""
    counted = [mapping(told.get("statuses")) for told in cell.task.sources]
    return {name: sum(whole(one.get(name)) or 0 for one in counted) for name in _STATUSES}


def label_scores_table(part: DataPart) -> Table:
    """What a model scores where the label that scores highest is taken for its answer, in each form of the scores."""
    columns = (
        Column("Model", "model"),
        Column("Task", "task"),
        Column("Variant", "variant"),
        Column("Reading", "form"),
        Column("Accuracy", "accuracy", "share"),
        Column("Balanced accuracy", "balanced", "share"),
        Column("Macro F1", "macro_f1", "decimal"),
        Column("AUROC", "auroc", "decimal"),
        Column("Accuracy of the text", "text_accuracy", "share"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        variants = list(mapping(cell.task.metrics.get("variants"))) or [""]
        for variant, told in zip(variants, cell.task.sources, strict=False):
            text_accuracy = Estimate.from_dict(mapping(told.get("metrics")).get("accuracy"))
            for form, figures in mapping(told.get("label_scores")).items():
                read = [Estimate.from_dict(mapping(figures).get(column.name)) for column in columns[4:8]]
                name = clean(variant) or None
                rows.append(
                    (cell.subject.label, cell.task.name, name, FORMS.get(form, clean(form)), *read, text_accuracy)
                )
                owners.append(cell.subject.number)
    return Table(
        f"{part.name}.label_scores",
        f"{part.title}: answers read from the labels' scores",
        columns,
        tuple(rows),
        tuple(owners),
        "The label that scores highest, in place of the text. Sums favour short labels, which the mean over a label's "
        "tokens makes up for; scores of a blank image show what the words alone suggest. AUROC stands beside the sums.",
    )


def unparsed_table(part: DataPart, most: int = 8) -> Table:
    """The commonest answers from which no class was read, of each task; texts are whole."""
    columns = (
        Column("Model", "model"),
        Column("Task", "task"),
        Column("Judged", "status"),
        Column("Times", "count", "count"),
        Column("Answer", "answer"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        for one in cell.task.unparsed[:most]:
            rows.append((cell.subject.label, cell.task.name, one.status.replace("_", " "), one.count, clean(one.text)))
            owners.append(cell.subject.number)
    title = f"{part.title}: commonest answers that could not be read"
    return Table(f"{part.name}.unparsed", title, columns, tuple(rows), tuple(owners))


def sensitivity_table(part: DataPart, blind: Sequence[Control]) -> Table:
    """What orders of options, wordings and blind controls do to accuracy.

    Args:
        part: the data set.
        blind: for each blind control its cell, the cell it is held against, and the paired difference.
    """
    columns = (
        Column("Model", "model"),
        Column("Task", "task"),
        Column("What changes", "what"),
        Column("Accuracy", "accuracy", "share"),
        Column("Held against", "against"),
        Column("Shown less blind", "over_control", "gap"),
        Column("Lowest", "lowest", "share"),
        Column("Highest", "highest", "share"),
        Column("Spread", "spread", "share"),
        Column("Answers that change", "flips", "share"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        if not cell.task.scored or not cell.task.varied:
            continue
        each = variant_accuracies(cell)
        values = [one.value for one in each.values() if known(one)]
        what = "order of the options" if cell.task.varied == "order" else "wording of the question"
        found = cell.metrics
        rows.append(
            (
                cell.subject.label,
                cell.task.name,
                f"{what} ({len(each)})",
                found.get("accuracy"),
                usual.task.name if (usual := part.held_against(cell)) is not None else None,
                None,
                min(values, default=math.nan),
                max(values, default=math.nan),
                found.get("spread"),
                found.get("flips"),
            )
        )
        owners.append(cell.subject.number)
    for control, shown, gap in blind:
        told = control.metrics.get("accuracy")
        what = f"image {control.task.image}"
        against = shown.task.name if shown is not None else None
        rows.append((control.subject.label, control.task.name, what, told, against, gap, None, None, None, None))
        owners.append(control.subject.number)
    return Table(
        f"{part.name}.sensitivity",
        f"{part.title}: other orders, other words, no image",
        columns,
        tuple(rows),
        tuple(owners),
        "What a model scores under a blind control (a grey or another group's image) it owes to the words. Each task "
        "is held against the one that asks the same in the usual way; where that was not run, there is no difference. "
        "“Shown less blind” is paired, over the documents that both answered.",
    )


def variant_accuracies(cell: Cell) -> dict[str, Estimate]:
    """Accuracy of each variant of a task, by name."""
    told = mapping(cell.task.metrics.get("variants"))
    return {
        clean(name): Estimate.from_dict(mapping(mapping(one).get("metrics")).get("accuracy"))
        for name, one in told.items()
    }


def positions_table(part: DataPart) -> Table | None:
    """Which place of the list the answers name; ``None`` where no task varies the order."""
    told = [
        (cell, clean(name), [number(share) for share in sequence(shares)])
        for cell in part.cells
        for name, shares in mapping(cell.task.metrics.get("positions")).items()
    ]
    if not told:
        return None
    most = max(len(shares) for _, _, shares in told)
    columns = (
        Column("Model", "model"),
        Column("Variant", "variant"),
        *(Column(f"Place {place + 1}", f"place_{place + 1}", "share") for place in range(most)),
    )
    rows: list[tuple[Value, ...]] = [
        (cell.subject.label, name, *shares, *[None] * (most - len(shares))) for cell, name, shares in told
    ]
    return Table(
        f"{part.name}.positions",
        f"{part.title}: share of answers by the option's place in the list",
        columns,
        tuple(rows),
        tuple(cell.subject.number for cell, _, _ in told),
    )


def mains_of(part: DataPart) -> list[Cell]:
    """The main cell of everyone on a data set that sees images."""
    return [cell for one in part.subjects if not one.blind and (cell := part.main(one)) is not None]
