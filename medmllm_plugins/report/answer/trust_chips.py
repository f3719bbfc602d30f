"""Trust chips: whether the result can be trusted, each with a link to its evidence on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.metrics.readability import MOSTLY
from medmllm_plugins.report.answer.coverage import Coverage, coverage
from medmllm_plugins.report.answer.strip_rows import blank_control
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import ImageControl
from medmllm_plugins.report.templating import anchor, texts
from medmllm_plugins.report.verdict import Verdict
from medmllm_plugins.results.report_records import TrustRecord

ChipStatus: TypeAlias = Literal["good", "caution", "unknown"]
MAX_FLIPS: Final = 0.10
"""One document in ten is as much as the smallest loss of interest of the diagnosis (10 points): differences of that
size between models may then come from the way of asking."""
CLEAR_FLIPS: Final = 0.05
"""Also a caution: even the lower end of the interval says that one document in twenty depends on it."""
MIN_PARSED: Final = 0.95
"""Unparsed answers count as wrong. From one in twenty on, they cost more than the usual interval of an accuracy."""
MAX_CALIBRATION_ERROR: Final = 0.10
"""A stated 90% that stands for less than 80% misleads a reader who decides by it which images to look at."""
_ORDER: Final[tuple[ChipStatus, ...]] = ("caution", "good", "unknown")


@dataclass(frozen=True, slots=True)
class TrustChip:
    """One chip.

    Attributes:
        status: ``good``, ``caution``, or ``unknown`` for what was not measured.
        label: what the chip says.
        meaning: one sentence on what that means.
        evidence: ids of elements that show the evidence, the best first; the page has at least the last in most cases.
    """

    name: str
    status: ChipStatus
    label: str
    meaning: str
    evidence: tuple[str, ...]

    def record(self) -> TrustRecord:
        """Return the chip as ``report.json`` has it."""
        return TrustRecord(name=self.name, status=self.status, label=self.label)


def trust_chips(
    dataset: DatasetRuns, verdicts: Sequence[Verdict], controls: Sequence[ImageControl]
) -> tuple[TrustChip, ...]:
    """Return the chips of a data set, cautions first; of several models each chip names the worst."""
    chips = [_leaks(dataset), _runs(dataset)]
    if verdicts:
        chips = [
            _documents(dataset, verdicts),
            *chips,
            _reference(dataset, verdicts),
            _image(dataset, verdicts, controls),
            _varied(dataset, "order", "option order"),
            _varied(dataset, "wording", "wording"),
            *_parsed(dataset, verdicts),
            _calibration(dataset, verdicts),
            _maps(dataset),
        ]
    return tuple(sorted(chips, key=lambda chip: _ORDER.index(chip.status)))


def _chip(name: str, status: ChipStatus, evidence: Sequence[str], /, **values: Any) -> TrustChip:
    label, meaning = texts("answer.txt.jinja", f"chip_{name}", **values)
    return TrustChip(name, status, label, meaning, tuple(evidence))


def _table(dataset: DatasetRuns, name: str) -> str:
    return f"table-{anchor(f'{dataset.name}.{name}')}"


def _model(verdict: Verdict, verdicts: Sequence[Verdict], status: ChipStatus) -> str:
    """Return the name of the model that a chip warns of; empty if there is only one, or nothing to warn of."""
    return verdict.subject.label if len(verdicts) > 1 and status == "caution" else ""


def _documents(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> TrustChip:
    def share(covered: Coverage) -> float:
        return covered.evaluated / covered.total if covered.total else 1.0

    covered = min((coverage(verdict.result) for verdict in verdicts), key=share)
    status: ChipStatus = "caution" if covered.partial else "unknown" if covered.total is None else "good"
    evidence = ("warnings", "table-data") if covered.partial else ("table-data",)
    unit = verdicts[0].document_unit
    return _chip("documents", status, (*evidence, "appendix"), covered=covered, unit=unit)


def _leaks(dataset: DatasetRuns) -> TrustChip:
    folds = [result.run.folds[dataset.name] for result in dataset.results if dataset.name in result.run.folds]
    divided = max((each.divided for each in folds), default=0)
    leaking = divided > 0 or any(result.task.entry.leaks for result in dataset.results)
    status: ChipStatus = "caution" if leaking else "good" if folds else "unknown"
    evidence = ("leaks", "table-data") if leaking else ("table-data",)
    return _chip("leaks", status, (*evidence, "appendix"), status=status, divided=divided)


def _reference(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> TrustChip:
    """Return the chip of the reference classifier; of several models, that of the first that has none to use."""
    references = [verdict.reference for verdict in verdicts]
    named = [reference for reference in references if reference.name]
    unused = [reference for reference in named if reference.obstacle or not reference.informative]
    reference = (unused or named or references)[0]
    status: ChipStatus = "caution" if unused else "good" if named else "unknown"
    return _chip("reference", status, (_table(dataset, "metrics"), "models", "appendix"), reference=reference)


def _varied(dataset: DatasetRuns, varied: str, what: str) -> TrustChip:
    results = [
        (result, flips)
        for result in dataset.results
        if not result.subject.reference
        and result.task.varied == varied
        and result.task.image == "shown"
        and known(flips := result.metrics.get("flips"))
        and flips is not None
    ]
    if not results:
        evidence = ("missing", "robustness", "appendix")
        values = {"what": what, "share": None, "variants": 0, "model": ""}
        return _chip("varied", "unknown", evidence, **values)
    result, flips = max(results, key=lambda pair: pair[1].value)
    status: ChipStatus = "caution" if flips.value > MAX_FLIPS or flips.low > CLEAR_FLIPS else "good"
    model = result.subject.label if len(dataset.models) > 1 and status == "caution" else ""
    evidence = (_table(dataset, "sensitivity"), "robustness", "appendix")
    variants = len(result.task.sources)
    return _chip("varied", status, evidence, what=what, share=flips.value, variants=variants, model=model)


def _parsed(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> Iterator[TrustChip]:
    shares = [verdict for verdict in verdicts if known(verdict.parsed)]
    if shares:
        worst = min(shares, key=lambda verdict: verdict.parsed)
        status: ChipStatus = "good" if worst.parsed >= MIN_PARSED else "caution"
        evidence = (_table(dataset, "parsing"), "appendix")
        yield _chip("parsed", status, evidence, share=worst.parsed, model=_model(worst, verdicts, status))


def _image(dataset: DatasetRuns, verdicts: Sequence[Verdict], controls: Sequence[ImageControl]) -> TrustChip:
    pairs = [(verdict, control) for verdict in verdicts if (control := blank_control(verdict, controls)) is not None]
    read = [(verdict, control.loss) for verdict, control in pairs if _is_read(control.result) and known(control.loss)]
    evidence = (_table(dataset, "sensitivity"), "robustness", "missing", "appendix")
    if not read:
        return _chip("image", "unknown", evidence, status="unknown", loss=None, model="", unread=bool(pairs))
    verdict, loss = min(read, key=lambda pair: pair[1].low)
    status: ChipStatus = "good" if loss.low > 0 else "caution"
    return _chip(
        "image", status, evidence, status=status, loss=loss, model=_model(verdict, verdicts, status), unread=False
    )


def _is_read(result: TaskResult) -> bool:
    parsed = result.metrics.get("parsed")
    return parsed is None or not known(parsed) or parsed.value >= MOSTLY


def _calibration(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> TrustChip:
    errors: list[tuple[Verdict, Estimate]] = [
        (verdict, error)
        for verdict in verdicts
        if (error := verdict.result.metrics.get("ece")) is not None and known(error)
    ]
    evidence = ("probabilities", _table(dataset, "label_scores"), "models", "appendix")
    if not errors:
        return _chip("calibration", "unknown", evidence, error=None, model="")
    verdict, error = max(errors, key=lambda pair: pair[1].value)
    status: ChipStatus = "good" if error.value <= MAX_CALIBRATION_ERROR else "caution"
    return _chip("calibration", status, evidence, error=error.value, model=_model(verdict, verdicts, status))


def _maps(dataset: DatasetRuns) -> TrustChip:
    rows = dataset.attribution_summaries()
    passed = sum(not row.summary.failed and not row.summary.unchecked for row in rows)
    unmade = sum(bool(row.summary.unchecked) for row in rows)
    status: ChipStatus = "unknown" if not rows else "good" if passed == len(rows) else "caution"
    evidence = (_table(dataset, "attributions"), "maps", "missing", "appendix")
    return _chip("maps", status, evidence, passed=passed, total=len(rows), unmade=unmade)


def _runs(dataset: DatasetRuns) -> TrustChip:
    runs = {id(result.run): result.run for result in dataset.results}.values()
    unfinished = sum(not run.manifest.finished for run in runs)
    changed = sum(bool(run.seal.differing) for run in runs)
    sealed = all(run.seal.sealed for run in runs)
    status: ChipStatus = "caution" if unfinished or changed else "good" if sealed else "unknown"
    evidence = ("missing", "table-runs") if status == "caution" else ("table-runs",)
    values = {"status": status, "unfinished": unfinished, "changed": changed}
    return _chip("runs", status, (*evidence, "appendix"), **values)
