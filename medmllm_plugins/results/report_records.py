"""Records of a report: the content of ``report.json``, for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord


@dataclass(frozen=True, slots=True)
class TableRecord(Record):
    """A table; each of its columns is defined in ``tables/README.md``.

    Attributes:
        title: its heading on the page.
        rows: values by the column's name; ``null`` where a number is not defined.
    """

    title: str
    rows: tuple[Mapping[str, Estimate | float | str | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRecord(Record):
    """A reference classifier that a model cannot be compared with.

    Attributes:
        name: its name.
        accuracy: its accuracy.
        reason: why the two cannot be compared.
    """

    name: str
    accuracy: Estimate
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord(Record):
    """The verdict on one model on one data set.

    Attributes:
        model: the model's label.
        task: the task that ranks it, its plainest question.
        sentence: the verdict in words.
        unreadable: why accuracy says little, where too few answers could be read; else empty.
        accuracy: accuracy of the answers.
        questions: number of questions.
        guess: the best constant answer, in words.
        guess_accuracy: its accuracy.
        difference_from_guess: the model minus the constant answer, paired.
        difference_from_guess_questions: number of questions that this difference is over.
        reference: name of the reference classifier that the model is compared with; empty without one.
        reference_accuracy: its accuracy over the questions that both answered.
        difference_from_reference: the model minus the reference classifier, paired.
        difference_from_reference_questions: number of questions that this difference is over.
        reference_not_compared: the reference classifier, if it cannot be compared; ``null`` otherwise.
        probed: the task whose probes the diagnosis is based on; empty without probes.
        named: the conclusion of the diagnosis; ``null`` without one.
        readable_until: for an unread hand-over, the last layer at which the class can be read.
        candidates: for an unread hand-over, the interfaces that may be broken.
        reasons: what the conclusion rests on, a sentence each.
        supported: failure modes that the evidence supports.
        undecided: failure modes that the evidence cannot decide about.
        ruled_out: failure modes that the evidence rules out.
    """

    model: str
    task: str
    sentence: str
    unreadable: str
    accuracy: Estimate
    questions: int
    guess: str
    guess_accuracy: float
    difference_from_guess: Estimate
    difference_from_guess_questions: int
    reference: str
    reference_accuracy: float = math.nan
    difference_from_reference: Estimate = UNKNOWN
    difference_from_reference_questions: int = 0
    reference_not_compared: ReferenceRecord | None = None
    probed: str
    named: str | None = None
    readable_until: str
    candidates: tuple[str, ...]
    reasons: tuple[str, ...]
    supported: tuple[str, ...]
    undecided: tuple[str, ...]
    ruled_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord(Record):
    """One thing that decides whether a result can be trusted.

    Attributes:
        name: what was checked, such as ``documents`` or ``leaks``.
        status: ``good``, ``caution``, or ``unknown`` for what was not measured.
        label: the result in a few words.
    """

    name: str
    status: Literal["good", "caution", "unknown"]
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStepRecord(Record):
    """What to do next for one model.

    Attributes:
        model: the model's label; empty if the step is about none.
        observation: what was seen.
        hypothesis: what follows if that is the cause.
        caution: what to check before; empty if there is nothing.
        commands: commands that test it, the first one first.
    """

    model: str
    observation: str
    hypothesis: str
    caution: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord(Record):
    """What a report says about one data set.

    Attributes:
        dataset: name of the data set.
        title: its title.
        headline: the result in at most 25 words.
        trust: whether it can be trusted, cautions first.
        next_steps: one for each model, first that of the best one that was probed.
        sentence: the overview of all models in words; with a single model, its verdict.
        verdicts: one verdict for each model.
        tables: the tables by the name of their CSV file without its ending; answers that could not be parsed are left
            out, since they may be long.
    """

    dataset: str
    title: str
    headline: str
    trust: tuple[TrustRecord, ...]
    next_steps: tuple[NextStepRecord, ...]
    sentence: str
    verdicts: tuple[VerdictRecord, ...]
    tables: Mapping[str, TableRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRecord(VersionedRecord):
    """The content of ``report.json``.

    Attributes:
        version: version of medmllm-plugins that made the report.
        title: title of the page.
        datasets: the data sets in the order of the page.
        runs: the runs behind the page.
        data: the data behind the page.
        missing: what is missing, and how to get it.
        leaks: leaks between the folds.
        warnings: what limits the results.
        methods: paragraphs for a paper, which cite the references by number.
        references: the references, the first with the number 1.
        files: tables and figures of the report, as paths relative to ``report.json``.
    """

    FORMAT: ClassVar[str] = "medmllm_report"
    VERSION: ClassVar[int] = 2

    version: str
    title: str
    datasets: tuple[DatasetRecord, ...]
    runs: TableRecord
    data: TableRecord
    missing: tuple[str, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...]
    methods: tuple[str, ...]
    references: tuple[str, ...]
    files: tuple[str, ...] = ()
