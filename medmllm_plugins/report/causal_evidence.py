"""What interventions and repairs show of each stage of a model: one short line each, beside the probes' evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import PARTS, STAGES
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.results.steering_records import Steering

_REPAIRED: Final = {"output": "answer", "prompt": "answer"}
"""Stages of repairs that are called differently here."""
_ORDER: Final = ("vision", "connector", "llm", "answer")


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """One finding about a stage.

    Attributes:
        stage: ``vision``, ``connector``, ``llm`` or ``answer``.
        kind: what was done, such as ``Patching``.
        text: what it showed.
    """

    stage: str
    kind: str
    text: str

    @property
    def title(self) -> str:
        """The part of the model as the page names it."""
        return PARTS.get(self.stage, STAGES[self.stage])


def causal_evidence(dataset: DatasetRuns, subject: Subject) -> tuple[StageEvidence, ...]:
    """Return what interventions and repairs show of a model, in the order of the stages, each finding once."""
    lines: dict[StageEvidence, None] = {}
    readers: tuple[tuple[Any, Callable[[Any], Iterator[StageEvidence]]], ...] = (
        (dataset.patched(), _patching),
        (dataset.exchanged(), _interchange),
        (dataset.cut(), _knockout),
        (dataset.steered(), _steering),
        (dataset.intervened(), _interventions),
        (dataset.repaired(), _repairs),
    )
    for records, read in readers:
        for result, record in records:
            if result.subject is subject:
                lines |= dict.fromkeys(read(record))
    return tuple(sorted(lines, key=lambda line: _ORDER.index(line.stage)))


def _line(stage: str, kind: str, macro: str, **values: Any) -> StageEvidence:
    return StageEvidence(stage, kind, text("signal.txt.jinja", macro, **values))


def stage_of(site: str) -> str:
    """Return the stage that a site belongs to, such as ``llm`` for ``llm.11 (all)``."""
    part = site.partition(" ")[0].partition(".")[0]
    return part if part in ("vision", "connector", "llm") else "answer"


def _patching(record: TwinPatching) -> Iterator[StageEvidence]:
    if not known(record.difference) or not record.difference.low > 0:
        yield _line("answer", "Twin", "no_difference", difference=record.difference)
        return
    for site, macro in ((record.first_restoring, "restores"), (record.first_breaking, "breaks")):
        if site:
            yield _line(stage_of(site), "Patching", macro, site=site, better=record.better)
    for share in record.shares:
        if known(share.accuracy) and share.accuracy.low > 0:
            values = {"share": share.accuracy, "difference": record.difference}
            yield _line(stage_of(share.module), "Twin", "share", **values)


def _interchange(record: Interchange) -> Iterator[StageEvidence]:
    if record.image_until or record.last_from:
        yield _line("llm", "Interchange", "interchange", until=record.image_until, start=record.last_from)


def _knockout(record: Knockout) -> Iterator[StageEvidence]:
    whole = [point for point in record.points if point.queries == "text" and known(point.lost)]
    if whole:
        yield _line("llm", "Knock-out", "knockout", lost=whole[-1].lost)


def _steering(record: Steering) -> Iterator[StageEvidence]:
    if record.chosen is not None and known(record.chosen.flips):
        yield _line("llm", "Steering", "steering", push=record.chosen)


def _interventions(record: InterventionResults) -> Iterator[StageEvidence]:
    for result in record.results:
        points = [point for point in result.points if known(point.lost)]
        if points:
            worst = max(points, key=lambda point: point.lost.value)
            yield _line("answer", "Intervention", "intervention", name=result.name, point=worst)


def _repairs(record: RepairStudy) -> Iterator[StageEvidence]:
    """Yield the repair of each stage that gains most, preferring those that help beyond doubt."""
    stages = dict.fromkeys(repair.stage for repair in record.repairs)
    for stage in stages:
        repairs = [repair for repair in record.repairs if repair.stage == stage and known(repair.gain)]
        if repairs:
            best = max(repairs, key=lambda repair: (repair.helps, repair.gain.value))
            yield _line(_REPAIRED.get(stage, stage), "Repair", "repair", repair=best)
