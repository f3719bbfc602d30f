"""The page: everything gathered, drawn and tabled, put into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import jinja2
from markupsafe import Markup

from medmllm_plugins import __version__
from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.intervals import UNKNOWN, known
from medmllm_plugins.report import formatting, methods_text
from medmllm_plugins.report.figures import answer_figures, attribution_figures, layer_figures, mapping_figures
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.figures.gallery import Gallery, gallery
from medmllm_plugins.report.figures.parallel_figures import Failed, draw_all
from medmllm_plugins.report.formatting import cut, percent
from medmllm_plugins.report.overview import overview
from medmllm_plugins.report.report_notes import Notes, notes
from medmllm_plugins.report.run_collection import Cell, DataPart, RunCollection, Subject
from medmllm_plugins.report.run_pairs import differences, groups_of, hits_of, paired
from medmllm_plugins.report.tables import answer_tables, finding_tables, layer_tables, run_tables
from medmllm_plugins.report.tables.answer_tables import Control
from medmllm_plugins.report.tables.report_table import Column, Table
from medmllm_plugins.report.verdict import BaselineComparison, Verdict, verdicts
from medmllm_plugins.utils.json_values import clean
from medmllm_plugins.utils.plain_text import listed, quantity

ROWS: Final = 300
"""So many rows of a table stand on the page; all are in its CSV file."""
WHOLE: Final = 100_000
"""So many characters of a long text stand on the page."""
ALL_TEXT: Final = 1_500_000
"""So many characters of long texts stand on the page together."""
_TEMPLATES: Final = "templates"


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix of counts as a table with shaded cells.

    Attributes:
        title: what it is of.
        series: number of the model.
        down: what the rows are.
        across: what the columns are.
        columns: their names.
        rows: name of each row, and of each cell its count and its share of the row in percent.
    """

    title: str
    series: int
    down: str
    across: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says of one data set."""

    part: DataPart
    sentence: str
    verdicts: tuple[Verdict, ...]
    accuracy: Drawing | None
    metrics: Table
    differences: Table
    classes: Table
    findings: Table
    counts: Table
    parsing: Table
    unparsed: Table
    label_scores: Table
    confusion: tuple[Heat, ...]
    reliability: Drawing | None
    roc: Drawing | None
    areas: Table
    sensitivity: Drawing | None
    changes: Table
    positions: Table | None
    layers: Drawing | None
    single_layers: tuple[tuple[Subject, Drawing], ...]
    health: Drawing | None
    modes: Table
    diagnosis: Table
    health_table: Table
    curves: Table
    agreement: tuple[Heat, ...]
    gains: Drawing | None
    mapping: Table
    lens: Drawing | None
    checks: Drawing | None
    randomisation: Drawing | None
    attributions: Table
    for_papers: tuple[Drawing, ...]

    def tables(self) -> list[Table]:
        """Its tables with rows, each of which is a CSV file."""
        found = [
            self.metrics,
            self.differences,
            self.classes,
            self.findings,
            self.counts,
            self.parsing,
            self.unparsed,
            self.label_scores,
        ]
        found += [self.areas, self.changes, *([self.positions] if self.positions is not None else [])]
        found += [self.modes, self.diagnosis, self.health_table, self.curves, self.mapping, self.attributions]
        return [one for one in found if one.rows]

    def drawings(self) -> list[Drawing]:
        """Its figures."""
        found = [self.accuracy, self.reliability, self.roc, self.sensitivity, self.layers, self.health]
        found += [one for _, one in self.single_layers]
        found += [self.gains, self.lens, self.checks, self.randomisation, *self.for_papers]
        return [one for one in found if one is not None]


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report, before it is written.

    Attributes:
        gathered: what it is of.
        title: its title.
        sections: one a data set.
        gallery: the attributions.
        notes: what is missing, leaks, warnings.
        methods: the paragraph for a paper.
        runs: the runs behind it.
        data: the data sets behind it.
    """

    gathered: RunCollection
    title: str
    sections: tuple[Section, ...]
    gallery: Gallery
    notes: Notes
    methods: methods_text.Methods
    runs: Table
    data: Table

    def tables(self) -> list[Table]:
        """All tables with rows."""
        return [*(one for section in self.sections for one in section.tables()), self.runs, self.data]

    def drawings(self) -> list[Drawing]:
        """All figures."""
        return [one for section in self.sections for one in section.drawings()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the verdicts, every table, and how all was made."""
        return {
            "medmllm_report": 1,
            "version": __version__,
            "title": self.title,
            "datasets": [
                {
                    "dataset": section.part.name,
                    "title": section.part.title,
                    "sentence": section.sentence,
                    "verdicts": [_verdict(one) for one in section.verdicts],
                    "tables": {one.stem: one.to_dict() for one in section.tables() if one is not section.unparsed},
                }
                for section in self.sections
            ],
            "runs": self.runs.to_dict(),
            "data": self.data.to_dict(),
            "missing": list(self.notes.missing),
            "leaks": list(self.notes.leaks),
            "warnings": list(self.notes.warnings),
            "methods": list(self.methods.paragraphs),
            "references": list(self.methods.references),
        }


def build(gathered: RunCollection) -> Report:
    """Draw and table everything."""
    numbers = itertools.count()
    plans = [(part, verdicts(part), _blind(part)) for part in gathered.sets]
    jobs = [
        (place, name, functools.partial(job, next(numbers)))
        for place, (part, _, blind) in enumerate(plans)
        for name, job in _jobs(part, blind)
    ]
    drawn: list[dict[str, Drawing]] = [{} for _ in plans]
    failed: list[str] = []
    for (place, name, _), drawing in zip(jobs, draw_all([job for *_, job in jobs]), strict=True):
        if isinstance(drawing, Failed):
            failed.append(f"{plans[place][0].title}: the figure “{name}” could not be drawn ({drawing.why}).")
        elif drawing is not None:
            drawn[place][name] = drawing
    found_notes = notes(gathered)
    sections = tuple(
        _section(part, found, blind, figures) for (part, found, blind), figures in zip(plans, drawn, strict=True)
    )
    models = [one.label for one in gathered.models] or [one.label for one in gathered.subjects]
    who = listed(models) if len(models) <= 2 else quantity(len(models), "model")
    what = [part.title for part in gathered.sets]
    on = listed(what) if len(what) <= 2 else quantity(len(what), "data set")
    return Report(
        gathered=gathered,
        title=f"{who} on {on}" if what else who,
        sections=sections,
        gallery=gallery(list(gathered.cells())),
        notes=dataclasses.replace(
            found_notes,
            missing=(*found_notes.missing, *failed),
            warnings=(*found_notes.warnings, *_boxes(one for named in drawn for one in named.values())),
        ),
        methods=methods_text.methods(gathered),
        runs=run_tables.runs_table(gathered),
        data=run_tables.data_table(gathered),
    )


def _boxes(drawings: Iterable[Drawing]) -> list[str]:
    """A warning where letters in pictures are empty boxes."""
    lacking = "".join(sorted({letter for one in drawings for letter in one.lacking}))
    if not lacking:
        return []
    return [
        f"No font was found that has {cut(' '.join(lacking), 60)}: the PNG files of figures show boxes in their place. "
        "The page and the SVG files hold them as text. Install a font for that script, such as Noto Sans CJK."
    ]


def _jobs(part: DataPart, blind: Sequence[Control]) -> list[tuple[str, Callable[[int], Drawing | None]]]:
    """What is to be drawn of a data set, by name; each takes the number of the figure. The longest come first."""
    found: list[tuple[str, Callable[[int], Drawing | None]]] = [
        (f"layers {place}", functools.partial(layer_figures.single, cell, part))
        for place, cell in enumerate(part.probed())
    ]
    for name, draw in (
        ("confusion", answer_figures.confusion),
        ("agreement", mapping_figures.agreement),
        ("reliability", answer_figures.reliability),
        ("roc", answer_figures.roc),
        ("gains", mapping_figures.gains),
        ("checks", attribution_figures.checks),
        ("layers", layer_figures.overlaid),
        ("accuracy", answer_figures.accuracies),
        ("health", layer_figures.health),
        ("lens", mapping_figures.lens),
        ("randomisation", attribution_figures.randomisation),
    ):
        found.append((name, functools.partial(draw, part)))
    return [*found, ("sensitivity", functools.partial(answer_figures.sensitivity, part, blind))]


def _section(
    part: DataPart, found: Sequence[Verdict], blind: Sequence[Control], figures: Mapping[str, Drawing]
) -> Section:
    singles = [(cell.subject, figures.get(f"layers {place}")) for place, cell in enumerate(part.probed())]
    pairs = differences(part)
    return Section(
        part=part,
        sentence=overview(part, found, pairs),
        verdicts=tuple(found),
        accuracy=figures.get("accuracy"),
        metrics=answer_tables.metrics_table(part, found),
        differences=answer_tables.differences_table(part, pairs),
        classes=answer_tables.class_table(part),
        findings=finding_tables.findings_table(part),
        counts=finding_tables.counts_table(part),
        parsing=answer_tables.parsing_table(part),
        unparsed=answer_tables.unparsed_table(part),
        label_scores=answer_tables.label_scores_table(part),
        confusion=_confusion(part),
        reliability=figures.get("reliability"),
        roc=figures.get("roc"),
        areas=_areas(part),
        sensitivity=figures.get("sensitivity"),
        changes=answer_tables.sensitivity_table(part, blind),
        positions=answer_tables.positions_table(part),
        layers=figures.get("layers"),
        single_layers=tuple((subject, one) for subject, one in singles if one is not None),
        health=figures.get("health"),
        modes=layer_tables.modes_table(part),
        diagnosis=layer_tables.diagnosis_table(part),
        health_table=layer_tables.health_table(part),
        curves=layer_tables.curves_table(part),
        agreement=_agreement(part),
        gains=figures.get("gains"),
        mapping=layer_tables.mapping_table(part),
        lens=figures.get("lens"),
        checks=figures.get("checks"),
        randomisation=figures.get("randomisation"),
        attributions=layer_tables.attribution_table(part),
        for_papers=tuple(figures[name] for name in ("confusion", "agreement") if name in figures),
    )


def _blind(part: DataPart) -> list[Control]:
    """Blind controls, each with the task it is held against and the paired difference of shown less blind."""
    controls = [cell for cell in part.cells if cell.task.scored and cell.task.image != "shown"]
    against = [part.held_against(cell) for cell in controls]
    gaps = paired(
        {
            str(place): (hits_of(shown), hits_of(cell), groups_of(shown))
            for place, (cell, shown) in enumerate(zip(controls, against, strict=True))
            if shown is not None
        }
    )
    nothing = (UNKNOWN, 0.0, 0)
    return [
        (cell, shown, gaps.get(str(place), nothing)[0])
        for place, (cell, shown) in enumerate(zip(controls, against, strict=True))
    ]


def _confusion(part: DataPart) -> tuple[Heat, ...]:
    found = []
    for cell in answer_figures.mains(part):
        matrix = answer_figures.confusion_of(cell)
        if matrix is not None:
            found.append(_heat(cell, *matrix, down="true", across="answered"))
    return tuple(found)


def _agreement(part: DataPart) -> tuple[Heat, ...]:
    found = []
    for cell, told in mapping_figures.mapped(part):
        matrix = mapping_figures.agreement_of(cell, told)
        if matrix is not None:
            found.append(_heat(cell, *matrix, down="probe says", across="answer says"))
    return tuple(found)


def _heat(cell: Cell, rows: Sequence[str], columns: Sequence[str], counts: Floats, *, down: str, across: str) -> Heat:
    lines = []
    for name, line in zip(rows, counts, strict=True):
        total = float(line.sum()) or 1.0
        lines.append((cut(name, 40), tuple((int(count), round(100 * float(count) / total, 1)) for count in line)))
    return Heat(
        f"{cell.subject.label}, {cell.task.name}",
        cell.subject.number,
        down,
        across,
        tuple(cut(name, 40) for name in columns),
        tuple(lines),
    )


def _areas(part: DataPart) -> Table:
    columns = (
        Column("Model", "model"),
        Column("Class", "class"),
        Column("Positives", "n", "count"),
        Column("Area under the ROC curve", "auroc", "decimal"),
    )
    found = [(cell, curve) for cell in answer_figures.mains(part) for curve in answer_figures.roc_of(cell)]
    rows = tuple((cell.subject.label, name, positives, area) for cell, (name, _, _, area, positives) in found)
    owners = tuple(cell.subject.number for cell, _ in found)
    return Table(f"{part.name}.roc", f"{part.title}: areas under the ROC curves", columns, rows, owners)


def _verdict(one: Verdict) -> dict[str, Any]:
    return {
        "model": one.subject.label,
        "task": one.cell.task.name,
        "sentence": one.sentence,
        "unreadable": one.unread,
        "accuracy": one.accuracy.to_dict(),
        "questions": one.questions,
        "blind": one.blind.name,
        "blind_accuracy": _plain(one.blind.accuracy.value),
        "over_blind": one.blind.gap.to_dict(),
        "over_blind_questions": one.blind.shared,
        **_reference(one.reference),
        "probed": one.probed,
        "named": one.named,
        "supported": [effect.mode for effect in one.supported],
        "cannot_tell": list(one.undecided),
    }


def _reference(one: BaselineComparison) -> dict[str, Any]:
    """A reference classifier; one that cannot be held against the model stands apart with its own accuracy."""
    if not one.compared:
        apart = {"name": one.name, "accuracy": one.accuracy.to_dict(), "why": one.why} if one.name else None
        return {"reference": "", "reference_apart": apart}
    return {
        "reference": one.name,
        "reference_accuracy": _plain(one.reached),
        "over_reference": one.gap.to_dict(),
        "over_reference_questions": one.shared,
        "reference_apart": None,
    }


def _plain(value: float) -> float | None:
    return value if known(value) else None


class LongText:
    """Cuts long texts for the page, and bounds what all of them take together."""

    def __init__(self) -> None:
        self._left = ALL_TEXT

    def __call__(self, value: object) -> tuple[str, int]:
        """As much of a text as the page can hold, and how many characters that leaves out."""
        whole = clean(value)
        kept = whole[: min(WHOLE, max(2_000, self._left))]
        self._left -= len(kept)
        return kept, len(whole) - len(kept)


def render(report: Report, beside: str) -> str:
    """The HTML.

    Args:
        report: what to show.
        beside: name of the folder with tables and figures, which lies beside the page.
    """
    script, css = _own("report.js"), _own("report.css")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_own),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "cut": cut,
        "decimal": formatting.decimal,
        "interval": formatting.interval,
    }
    environment.globals["known"] = known
    manifests = [
        (run.name, json.dumps(_shown(run.manifest), indent=1, ensure_ascii=False)) for run in report.gathered.runs
    ]
    return environment.get_template("report.html").render(
        report=report,
        beside=beside,
        version=__version__,
        css=Markup(css),  # our own file
        script=Markup(script),  # likewise
        policy=_policy(script),
        whole=LongText(),
        rows=ROWS,
        markup=Markup,  # for the figures alone, in whose SVG matplotlib escapes every text
        prompts=methods_text.prompts(report.gathered),
        commands=[(run.name, methods_text.commands(run)) for run in report.gathered.runs],
        manifests=manifests,
        citations={section.part.name: methods_text.set_citations(section.part) for section in report.sections},
    )


def _own(name: str) -> str:
    """A file of this package's templates."""
    return files(str(__package__)).joinpath(_TEMPLATES, name).read_text("utf-8")


def _policy(script: str) -> str:
    """A policy under which the page can load nothing, send nothing, and run no script but its own."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _shown(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without the list of plugins."""
    return {key: value for key, value in manifest.items() if key != "plugins"}
