"""Records of steering: what pushes along a probe's direction do to the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringPoint(Record):
    """The effect of one kind of push at one dose.

    Attributes:
        layer: a block of the LLM, such as ``llm.03``.
        tokens: whose states are pushed: ``image`` or ``last`` (the last token of the prompt).
        direction: ``probe`` (toward another class), ``opposite`` (away from it), ``random``, or ``permuted`` (the
            probe's direction with its coordinates permuted).
        dose: length of the push, as a share of each token's norm.
        shift: how much the log-odds of the other class against the document's own rise, in nats.
        flips: share of documents that the label scores assign to the other class, of those that they did not.
        on_labels: probability of all labels together; where it falls, the push breaks the answer.
        parsed: share of the generated answers out of which a class could be read.
        perplexity: of the generated answers in the model without the push: the exponential of the mean of -log p over
            their tokens, and over documents. Answers that the model would not give have a high one.
    """

    layer: str
    tokens: str
    direction: str
    dose: float
    shift: Estimate
    flips: Estimate
    on_labels: float
    parsed: float = math.nan
    perplexity: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringProbe(Record):
    """A probe along whose direction states are pushed.

    Attributes:
        layer: the block.
        tokens: what it is fitted on: the mean over the ``image`` tokens, or the ``last`` token.
        accuracy: share of held-out train documents that it classifies correctly; NaN where there are too few.
    """

    layer: str
    tokens: str
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering(VersionedRecord):
    """Steering of one task: the content of ``TASK.steering.json``.

    Attributes:
        task: the task's name.
        headline: the result in one or two sentences.
        n: documents.
        groups: groups that are resampled for intervals.
        train_documents: documents of the train fold that the probes are fitted on.
        on_labels: probability of all labels together, without a push.
        parsed: share of the generated answers out of which a class could be read, without a push.
        perplexity: of these answers.
        probes: the probes, site by site.
        points: all pushes.
        chosen: the push that moves most beyond its controls in one half of the groups, with its effect in the other
            half; ``None`` where no push does.
        chosen_control: the largest effect of its controls there, at the same site and dose.
    """

    FORMAT: ClassVar[str] = "medmllm_steering"

    task: str = ""
    headline: str = ""
    n: int = 0
    groups: int = 0
    train_documents: int = 0
    on_labels: float = 0.0
    parsed: float = math.nan
    perplexity: float = math.nan
    probes: tuple[SteeringProbe, ...] = ()
    points: tuple[SteeringPoint, ...] = ()
    chosen: SteeringPoint | None = None
    chosen_control: Estimate = UNKNOWN
