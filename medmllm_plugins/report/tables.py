"""The report's tables: each is shown on the page, sorts there, and lies beside it as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from medmllm_plugins.metrics.files import csv_text
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report import text
from medmllm_plugins.report.attributing import GAINS
from medmllm_plugins.report.gathering import Cell, DataPart, Gathered, Subject
from medmllm_plugins.report.probing import READINGS, TITLES, Point
from medmllm_plugins.report.text import clean, cut, estimate, mapping, number, sequence
from medmllm_plugins.report.verdict import Verdict, blind_baseline

Kind: TypeAlias = Literal["text", "hash", "share", "gap", "decimal", "count", "p"]
"""What a column holds: words; a fingerprint; a share of 1 or a difference of shares, shown in percent; a plain number;
a count; a p-value."""
Value: TypeAlias = str | int | float | Estimate | None
Control: TypeAlias = tuple[Cell, Cell | None, Estimate]
"""A blind control, the task that it is held against, and the paired difference: shown less blind."""
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
"""Metrics in the order of columns, shares of 1 apart from those of :data:`_DECIMALS`."""
_DECIMALS: Final = frozenset({"macro_f1", "mcc", "auroc", "auprc", "kappa", "ece", "brier"})
_STATUSES: Final = ("parsed", "ambiguous", "out_of_list", "refusal")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, its name in the CSV file, and what it holds."""

    title: str
    name: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Shown:
    """One cell as the page shows it: the words, the interval below them, and the number to sort by."""

    words: str
    below: str
    sort: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        stem: name of its CSV file, without the ending.
        title: what it shows.
        columns: its columns.
        rows: a value for each column; an :class:`Estimate` takes three columns of the CSV file.
        series: for each row the number of the model it is of, or ``None``.
        note: what a reader must know.
    """

    stem: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    series: tuple[int | None, ...] = ()
    note: str = ""

    def shown(self) -> list[tuple[int | None, list[Shown]]]:
        """The rows as the page shows them, each with its model's number."""
        numbers = self.series or (None,) * len(self.rows)
        return [
            (owner, [show(value, column.kind) for value, column in zip(row, self.columns, strict=True)])
            for owner, row in zip(numbers, self.rows, strict=True)
        ]

    def csv(self) -> str:
        """The table as CSV; an undefined number is an empty cell."""
        wide = [any(isinstance(row[place], Estimate) for row in self.rows) for place in range(len(self.columns))]
        header = [
            f"{column.name}{end}"
            for column, is_wide in zip(self.columns, wide, strict=True)
            for end in (("", "_low", "_high") if is_wide else ("",))
        ]
        return csv_text(header, (list(_flat(row, wide)) for row in self.rows))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types: rows as mappings from column to value, estimates as mappings."""
        names = [column.name for column in self.columns]
        rows = [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in self.rows]
        return {"title": self.title, "rows": rows}


def _flat(row: Sequence[Value], wide: Sequence[bool]) -> Iterable[str | int | float | None]:
    for value, is_wide in zip(row, wide, strict=True):
        plain = value.value if isinstance(value, Estimate) else value
        yield _number(plain)
        if is_wide:
            yield from (_number(value.low), _number(value.high)) if isinstance(value, Estimate) else (None, None)


def _number(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(value: Value) -> object:
    return value.to_dict() if isinstance(value, Estimate) else _number(value)


def show(value: Value, kind: Kind) -> Shown:
    """A value as people read it."""
    if value is None or isinstance(value, str):
        words = text.NOTHING if value is None else value
        return Shown(words, "", "" if value is None else words.casefold()[:80])
    main = value.value if isinstance(value, Estimate) else float(value)
    if math.isnan(main):
        return Shown(text.NOTHING, "", "")
    signed = kind == "gap"
    if kind in ("share", "gap"):
        words = text.percent(main, signed=signed).removesuffix("\N{NO-BREAK SPACE}%")
    elif kind == "count":
        words = f"{int(main):,}"
    else:
        words = text.p_value(main) if kind == "p" else text.decimal(main, 3)
    below = ""
    if isinstance(value, Estimate) and not math.isnan(value.low):
        scale, places = (100, 1) if kind in ("share", "gap") else (1, 3)
        below = " to ".join(text.decimal(scale * end, places, signed=signed) for end in (value.low, value.high))
    return Shown(words, below, f"{main:.9g}")


def metrics_table(part: DataPart, found: Sequence[Verdict]) -> Table:
    """All metrics of all tasks of a data set, with the gaps to blind answers and to the reference classifier."""
    by_number = {one.subject.number: one for one in found}
    main = {id(part.main(one)) for one in part.subjects}
    # What a model is worth stands first; other questions and blind controls follow.
    cells = sorted(
        (cell for cell in part.cells if cell.task.scored),
        key=lambda cell: (id(cell) not in main, not cell.task.plain, cell.task.image != "shown", cell.subject.number),
    )
    present = [
        name for name in METRICS if name != "accuracy" and any(text.known(cell.metrics.get(name)) for cell in cells)
    ]
    gaps = any(one.reference for one in found)
    columns = [Column("Model", "model"), Column("Task", "task")]
    columns += [Column("Questions", "n", "count"), Column("Groups", "groups", "count")]
    columns += [Column(METRICS["accuracy"], "accuracy", "share"), Column("Over blind", "over_blind", "gap")]
    columns += [Column("Over reference", "over_reference", "gap")] if gaps else []
    columns += [Column(METRICS[name], name, "decimal" if name in _DECIMALS else "share") for name in present]
    rows: list[tuple[Value, ...]] = []
    for cell in cells:
        told = cell.task.metrics
        verdict = by_number.get(cell.subject.number)
        mine = verdict if verdict is not None and verdict.cell is cell else None
        row: list[Value] = [cell.subject.label, cell.task.name, _whole(told.get("n")), _whole(told.get("n_groups"))]
        row += [cell.metrics.get("accuracy"), mine.over_blind if mine else None]
        row += [mine.over_reference if mine and mine.reference else None] if gaps else []
        row += [cell.metrics.get(name) for name in present]
        rows.append(tuple(row))
    owners = [cell.subject.number for cell in cells]
    blind, value = next((one for cell in cells if (one := blind_baseline(cell))[0]), ("", math.nan))
    if blind:
        rows.append(tuple(["(blind) " + blind.replace("_", " "), "", None, None, value, *[None] * (len(columns) - 5)]))
        owners.append(-1)
    return Table(
        f"{part.name}.metrics",
        f"{part.title}: metrics",
        tuple(columns),
        tuple(rows),
        tuple(None if one < 0 else one for one in owners),
        "Shares and differences in percent, with 95 % intervals (cluster bootstrap over groups). “Over blind” and "
        "“over reference” are paired differences of accuracy.",
    )


def class_table(part: DataPart) -> Table:
    """Figures of each class (or finding) of each model's main task."""
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
    for cell in _mains(part):
        told = cell.task.metrics
        for one in map(mapping, [*sequence(told.get("per_class")), *sequence(told.get("per_finding"))]):
            rows.append(
                (
                    cell.subject.label,
                    cut(one.get("label") or one.get("finding") or ""),
                    _whole(one.get("n")),
                    estimate(one.get("sensitivity")),
                    estimate(one.get("specificity")),
                    number(one.get("precision")),
                    estimate(one["f1"]) if isinstance(one.get("f1"), dict) else number(one.get("f1")),
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
        rows.append((cell.subject.label, cell.task.name, total, *shares, estimate(told)))
        owners.append(cell.subject.number)
    return Table(
        f"{part.name}.parsing", f"{part.title}: what answers could be read", columns, tuple(rows), tuple(owners)
    )


def statuses(cell: Cell) -> dict[str, int]:
    """Number of answers of each status, over all variants of a task."""
    told = cell.task.metrics
    sources = [told] if told.get("statuses") else list(mapping(told.get("variants")).values())
    return {name: sum(_whole(mapping(one.get("statuses")).get(name)) or 0 for one in sources) for name in _STATUSES}


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
        Column("Lowest", "lowest", "share"),
        Column("Highest", "highest", "share"),
        Column("Spread", "spread", "share"),
        Column("Answers that change", "flips", "share"),
        Column("Shown less blind", "over_control", "gap"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in part.cells:
        if not cell.task.scored or not cell.task.varied:
            continue
        each = variant_accuracies(cell)
        values = [one.value for one in each.values() if text.known(one)]
        what = "order of the options" if cell.task.varied == "order" else "wording of the question"
        found = cell.metrics
        rows.append(
            (
                cell.subject.label,
                cell.task.name,
                f"{what} ({len(each)})",
                found.get("accuracy"),
                min(values, default=math.nan),
                max(values, default=math.nan),
                found.get("spread"),
                found.get("flips"),
                None,
            )
        )
        owners.append(cell.subject.number)
    for control, _, gap in blind:
        told = control.metrics.get("accuracy")
        what = f"image {control.task.image}"
        rows.append((control.subject.label, control.task.name, what, told, None, None, None, None, gap))
        owners.append(control.subject.number)
    return Table(
        f"{part.name}.sensitivity",
        f"{part.title}: other orders, other words, no image",
        columns,
        tuple(rows),
        tuple(owners),
        "What a model scores under a blind control (a grey or another group's image) it owes to the words. “Shown less "
        "blind” is paired, over the documents that both answered.",
    )


def variant_accuracies(cell: Cell) -> dict[str, Estimate]:
    """Accuracy of each variant of a task, by name."""
    told = mapping(cell.task.metrics.get("variants"))
    return {clean(name): estimate(mapping(mapping(one).get("metrics")).get("accuracy")) for name, one in told.items()}


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
        for one in probing.effects:
            verdict = f"{one.verdict} (named)" if one.mode == probing.named else one.verdict
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
        lost = {one.mode: one.loss for one in found.effects}
        supported = ", ".join(one.mode for one in found.supported()) or "none"
        rows.append(
            (
                cell.subject.label,
                found.answer,
                found.best.accuracy if found.best else None,
                *(lost.get(mode) for mode in TITLES),
                supported,
                found.named or "none",
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
        Column("Locus", "locus"),
        Column("Pooling", "pooling"),
        Column("Width", "width", "count"),
        Column("Read", "read"),
        Column("Accuracy", "accuracy", "share"),
        Column("Balanced", "balanced", "share"),
        Column("Control task", "control", "share"),
        Column("Selectivity", "selectivity", "gap"),
        Column("Shuffled, mean", "null", "share"),
        Column("Shuffled, 95th", "null_high", "share"),
        Column("p (Holm)", "p_holm", "p"),
    )

    def row(subject: Subject, one: Point) -> tuple[Value, ...]:
        read = "yes" if one.read else "never read"
        place: tuple[Value, ...] = (subject.label, one.locus, one.pooling, one.width, read)
        return (*place, one.accuracy, one.balanced, one.control, one.selectivity, one.null, one.null_high, one.p_holm)

    pairs = [(cell.subject, one) for cell in part.probed() if cell.task.probing for one in cell.task.probing.points]
    return Table(
        f"{part.name}.curves",
        f"{part.title}: probes of every layer",
        columns,
        tuple(row(subject, one) for subject, one in pairs),
        tuple(subject.number for subject, _ in pairs),
        "Shuffled: balanced accuracy of probes of shuffled labels. Loci “never read” are layers of the tower that the "
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
            ("probe of the last token (gain: mapping gap)", found.probe, found.gap),
            *((READINGS[name], accuracy, gain) for name, (accuracy, gain) in found.readings.items()),
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
        Column("Layer", "locus"),
        Column("n", "n", "count"),
        Column("Checks failed", "failed", "count"),
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
            rows.append((cell.subject.label, one.method, one.locus, one.n, len(one.failed), *figures, one.area))
            owners.append(cell.subject.number)
    return Table(
        f"{part.name}.attributions",
        f"{part.title}: checks of the attributions",
        columns,
        tuple(rows),
        tuple(owners),
        "Which checks failed, and how, is said under “How it was made”.",
    )


def runs_table(gathered: Gathered) -> Table:
    """The runs behind the page."""
    columns = (
        Column("Run folder", "run"),
        Column("Model", "model"),
        Column("Tasks", "tasks"),
        Column("Began", "started"),
        Column("Finished", "finished"),
        Column("Model files", "fingerprint"),
        Column("Parameters", "parameters", "count"),
        Column("Precision", "dtype"),
        Column("Device", "device"),
        Column("Time, s", "seconds", "count"),
        Column("Peak memory, MB", "memory", "count"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for subject in gathered.subjects:
        for run in subject.runs:
            stages = [mapping(one) for one in sequence(run.manifest.get("stages"))]
            peaks = [number(one.get("process_peak_bytes")) for one in stages]
            rows.append(
                (
                    run.name,
                    subject.label,
                    ", ".join(task.name for task in run.tasks),
                    _moment(run.manifest.get("started")) or None,
                    _moment(run.manifest.get("finished")) or "not finished",
                    cut(run.model.get("fingerprint") or "", 13) or None,
                    number(run.model.get("parameters")),
                    clean(run.model.get("dtype") or "") or None,
                    clean(run.model.get("device") or "") or None,
                    math.fsum(one for stage in stages if text.known(one := number(stage.get("seconds")))),
                    max((peak / 1e6 for peak in peaks if text.known(peak)), default=math.nan),
                )
            )
            owners.append(subject.number)
    return Table("runs", "The runs", columns, tuple(rows), tuple(owners))


def data_table(gathered: Gathered) -> Table:
    """The data behind the page: fingerprints, folds and leaks."""
    columns = (
        Column("Data set", "dataset"),
        Column("Fingerprint", "fingerprint", "hash"),
        Column("Hash of the folds", "folds_hash", "hash"),
        Column("Train", "train", "count"),
        Column("Validation", "validation", "count"),
        Column("Test", "test", "count"),
        Column("Groups", "groups", "count"),
        Column("Divided groups", "divided", "count"),
        Column("Exposed test documents", "exposed", "count"),
    )
    rows: dict[tuple[str, str], tuple[Value, ...]] = {}
    for part in gathered.sets:
        for cell in sorted(part.cells, key=lambda cell: part.name not in cell.run.folds):
            told = cell.task.told
            folds = cell.run.folds.get(part.name)
            counts = folds.counts if folds else {name: _total(one) for name, one in mapping(told.get("counts")).items()}
            mark = clean(told.get("dataset_fingerprint") or "")
            row: tuple[Value, ...] = (
                part.title,
                mark or None,
                clean(told.get("folds_hash") or (folds.digest if folds else "")) or None,
                *(counts.get(name) for name in ("train", "validation", "test")),
                folds.groups if folds else None,
                folds.divided if folds else None,
                folds.exposed if folds else None,
            )
            rows.setdefault((part.name, mark), row)
    return Table(
        "data",
        "The data",
        columns,
        tuple(rows.values()),
        note="Equal fingerprints mean equal files and labels. Divided: groups with documents in more than one fold.",
    )


def _moment(told: object) -> str:
    """Date and minute of a time stamp."""
    return clean(told or "").replace("T", " ")[:16]


def _total(told: object) -> int:
    return sum(_whole(one) or 0 for one in mapping(told).values())


def _mains(part: DataPart) -> list[Cell]:
    return [cell for one in part.subjects if not one.blind and (cell := part.main(one)) is not None]


def _whole(value: object) -> int | None:
    found = number(value)
    return None if math.isnan(found) else int(found)
