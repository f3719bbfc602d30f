"""Records of repairs: what each change of a model costs, and what it gains on held-out documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord

RepairStage: TypeAlias = Literal["output", "prompt", "connector", "llm", "vision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairTransfer(Record):
    """What a repair does where it was not fitted.

    Attributes:
        task: ``other wordings``, or the name of a task.
        n: questions.
        before: accuracy without the repair.
        after: accuracy with it.
        gain: the paired difference.
    """

    task: str
    n: int
    before: Estimate
    after: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPoint(Record):
    """What a repair gains that was fitted on fewer documents.

    Attributes:
        documents: number of documents of the train fold; of recalibrations, of the validation fold.
        gain: accuracy with the repair minus that without, on the test fold.
    """

    documents: int
    gain: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult(Record):
    """One repair.

    Attributes:
        name: name of the candidate, such as ``connector_adapter``.
        title: what it is, in words.
        stage: what it changes.
        parameters: trained numbers; 0 where a setting was chosen.
        seconds: time to fit it.
        steps: updates that were made; 0 without training.
        documents: documents that it was fitted on.
        validation_gain: accuracy with the repair minus that without, on the validation fold, by which it is chosen.
        accuracy: accuracy on the test fold.
        gain: the paired difference to the accuracy without it, on the test fold.
        shuffled_gain: the same after fitting on labels that were shuffled among groups; unknown for repairs that are
            not fitted on the labels of documents. A model that is worse than guessing gains by guessing.
        over_shuffled: accuracy with the repair minus that with the one that was fitted on shuffled labels.
        over_guess: accuracy with the repair minus that of always giving the most common answer, on the test fold;
            unknown in files of before this figure.
        fixed: test documents that are answered correctly with the repair alone.
        broken: test documents that are answered correctly without it alone.
        parsed: share of the answers with it out of which a class could be read.
        ece: expected calibration error of the label scores with it; NaN without scores.
        transfers: what it does elsewhere.
        curve: gains after fitting on fewer documents.
        helps: whether its gain is beyond doubt, see docs/repair.md.
        pareto: whether it gains on the validation fold, and no cheaper candidate gains as much.
        setting: what was chosen, in words; empty for trained parts.
        folder: where it is, below the run folder; empty where nothing was fitted.
        stopped: why training ended.
    """

    name: str
    title: str
    stage: RepairStage
    parameters: int
    seconds: float
    steps: int
    documents: int
    validation_gain: Estimate
    accuracy: Estimate
    gain: Estimate
    shuffled_gain: Estimate = UNKNOWN
    over_shuffled: Estimate = UNKNOWN
    over_guess: Estimate = UNKNOWN
    fixed: int
    broken: int
    parsed: float
    ece: float
    transfers: tuple[RepairTransfer, ...] = ()
    curve: tuple[LearningPoint, ...] = ()
    helps: bool = False
    pareto: bool = False
    setting: str = ""
    folder: str = ""
    stopped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStudy(VersionedRecord):
    """All repairs of one model on one task.

    Attributes:
        task: name of the task.
        model: checkpoint.
        n: questions of the test fold.
        groups: groups of the test fold.
        accuracy: accuracy on the test fold without a repair.
        parsed: share of those answers out of which a class could be read.
        ece: expected calibration error of the label scores without a repair; NaN without scores.
        repairs: from cheap to expensive.
        left_out: why candidates were not tried, by name.
        cheapest: name of the cheapest repair that helps; empty if none does.
        best: of the repairs that help, the one with the highest validation accuracy; empty if none does.
        sentence: the result in words.
    """

    FORMAT: ClassVar[str] = "medmllm_repairs"

    task: str
    model: str
    n: int
    groups: int
    accuracy: Estimate
    parsed: float
    ece: float
    repairs: tuple[RepairResult, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    cheapest: str = ""
    best: str = ""
    sentence: str = ""

    def of(self, name: str) -> RepairResult:
        """Return the repair of a name.

        Raises:
            KeyError: there is none.
        """
        return {repair.name: repair for repair in self.repairs}[name]
