"""Ladders: what is known of the class after each stage of a model, and what is lost from one stage to the next.

All numbers of a probed model are those of its diagnosis (docs/diagnosis.md); without probes, a ladder has only the
reference classifier, the label with the highest score and the answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from zlib import crc32

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.report.causal_evidence import StageEvidence, causal_evidence
from medmllm_plugins.report.display_names import STAGES
from medmllm_plugins.report.formatting import first_sentence
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import text
from medmllm_plugins.report.verdict import Verdict
from medmllm_plugins.results.probe_records import CONTROL, HANDOVER, Effect, ProbeAnalysis
from medmllm_plugins.utils.json_values import clean

StepVerdict: TypeAlias = Literal["supported", "ruled out", "unclear", "stage unknown"]
_STEPS: Final = {
    "vision": ("reference", "vision"),
    "connector": ("vision", "connector"),
    "comprehension": ("connector", "llm"),
    "mapping": ("llm", "answer"),
}
"""The stages before and after each failure mode."""
_SHOWN: Final = 0.0005
"""Accuracies that differ by less look the same where they are printed."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One stage.

    Attributes:
        stage: ``reference``, ``vision``, ``connector``, ``llm``, ``label`` or ``answer``.
        accuracy: what is known of the class after this stage, later stages included; unknown if it was not measured.
        own: accuracy of the probe at the stage's own end, if another source shows more; unknown otherwise.
        source: what shows the accuracy, such as ``vision.05 (mean)``.
        used: whether a loss may start from here; false for a reference classifier that is no better than guessing.
    """

    stage: str
    accuracy: Estimate
    own: Estimate = UNKNOWN
    balanced: Estimate = UNKNOWN
    source: str = ""
    used: bool = True

    @property
    def title(self) -> str:
        """The stage as the page names it."""
        return STAGES[self.stage]

    @property
    def note(self) -> str:
        """Why there is no accuracy, or why it is not used; empty otherwise."""
        state = "" if self.used and known(self.accuracy) else "unused" if known(self.accuracy) else "missing"
        return text("signal.txt.jinja", "rung_note", state=state, stage=self.stage) if state else ""


@dataclass(frozen=True, slots=True)
class Step:
    """The loss from one rung to a later one.

    Attributes:
        start: index of the rung before.
        end: index of the rung after.
        loss: accuracy lost, as a share of 1.
        verdict: what the evidence says of the loss; ``stage unknown`` if no probe tells which stage loses it.
        why: the reason in one sentence; may be empty.
    """

    start: int
    end: int
    loss: Estimate
    verdict: StepVerdict
    why: str = ""

    @property
    def label(self) -> str:
        """The loss in words, such as ``−12.0 points (7–17)``."""
        return text("signal.txt.jinja", "loss", loss=self.loss)


@dataclass(frozen=True, slots=True)
class Ladder:
    """The ladder of one model on one task.

    Attributes:
        chart: identifies the model's layer chart on the page; empty without probes.
        rungs: the stages in the order in which an image passes them.
        guess: accuracy of always answering the most common class; NaN if it is unknown.
        documents: number of documents that the accuracies are of.
        groups: their groups; 0 if unknown.
        readable: index of the last rung up to which the class can be read, if nothing after it uses it.
        readable_until: the site there.
        reference: the reference classifier, if its run is among those of the report.
        task: name of the task, if the model has several ladders; empty otherwise.
        sentences: the diagnosis: its first sentence, and all others.
        command: the command that fills the ladder; empty for a probed model.
        evidence: what interventions and repairs show, by stage.
    """

    subject: Subject
    result: TaskResult
    chart: str
    rungs: tuple[Rung, ...]
    steps: tuple[Step, ...]
    guess: float
    documents: int
    groups: int
    sentences: tuple[str, str]
    evidence: tuple[StageEvidence, ...]
    readable: int | None = None
    readable_until: str = ""
    reference: Subject | None = None
    task: str = ""
    command: str = ""

    @property
    def title(self) -> str:
        """The model, and the task if there are several."""
        return f"{self.subject.label}, {self.task}" if self.task else self.subject.label

    @property
    def stages(self) -> list[Rung]:
        """Rungs that the layer chart has a place for; none without probes."""
        return [rung for rung in self.rungs if self.chart and rung.stage not in ("reference", "label")]


def ladders(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> list[Ladder]:
    """Return a ladder for each probed task, then one for each other model that has metrics."""
    verdict_of = {verdict.subject.number: verdict for verdict in verdicts}
    probed = dataset.probed()
    numbers = [result.subject.number for result, _ in probed]
    shown: set[int] = set()  # what interventions show is about a model, and stands under its first ladder
    made = []
    for index, (result, probing) in enumerate(probed):
        number = result.subject.number
        evidence = () if number in shown else causal_evidence(dataset, result.subject)
        shown.add(number)
        task = clean(result.task.name) if numbers.count(number) > 1 else ""
        verdict = verdict_of.get(number)
        made.append(
            _probed(dataset, result, probing, verdict, chart=_chart(dataset, index), task=task, evidence=evidence)
        )
    made += [_unprobed(dataset, verdict) for number, verdict in verdict_of.items() if number not in numbers]
    return made


def _chart(dataset: DatasetRuns, index: int) -> str:
    """Return what identifies the layer chart of a probed task in a page's address."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in dataset.name)
    if name != dataset.name:
        name += f"-{crc32(dataset.name.encode()):08x}"  # two names may have become one
    return f"layers-{name}-{index + 1}"


def _probed(
    dataset: DatasetRuns,
    result: TaskResult,
    probing: ProbeAnalysis,
    verdict: Verdict | None,
    *,
    chart: str,
    task: str,
    evidence: tuple[StageEvidence, ...],
) -> Ladder:
    diagnosis = probing.diagnosis
    informative = _is_informative(probing, verdict)
    rungs = tuple(_probed_rungs(probing, verdict, informative=informative))
    at = {rung.stage: index for index, rung in enumerate(rungs)}
    readable = None
    if diagnosis.named == HANDOVER and diagnosis.readable_until:
        stage = diagnosis.readable_until.partition(" ")[0].partition(".")[0]
        readable = at.get("label" if stage == "label" else stage)
    conclusion = text("verdict.txt.jinja", "conclusion", diagnosis=diagnosis)
    first = first_sentence(conclusion)
    return Ladder(
        subject=result.subject,
        result=result,
        chart=chart,
        rungs=rungs,
        steps=tuple(_steps(diagnosis.effects, at, informative=informative)),
        guess=probing.majority,
        documents=probing.counts.get("test", 0),
        groups=probing.groups,
        sentences=(first, conclusion.removeprefix(first).lstrip()),
        evidence=evidence,
        readable=readable,
        readable_until=diagnosis.readable_until if readable is not None else "",
        reference=_reference_subject(dataset, probing.reference_name),
        task=task,
    )


def _is_informative(probing: ProbeAnalysis, verdict: Verdict | None) -> bool:
    """Return whether the reference classifier of a diagnosis is better than guessing."""
    if verdict is not None:
        compared = verdict.reference
        if compared.name == probing.reference_name and known(compared.difference.low):  # by the answers of its run
            return compared.informative
    low = probing.reference.low
    return not known(low) or not known(probing.majority) or low > probing.majority


def _probed_rungs(probing: ProbeAnalysis, verdict: Verdict | None, *, informative: bool) -> Iterator[Rung]:
    stages = {stage.stage: stage for stage in probing.diagnosis.stages}
    vision = next((effect for effect in probing.diagnosis.effects if effect.mode == "vision"), None)
    if vision is not None and vision.before.startswith(CONTROL):
        # Control features show more than the tower does, so that the loss of the tower is measured from them.
        best = next((point for point in probing.points if _site(point.layer, point.pooling) == vision.before), None)
        accuracy, balanced = (UNKNOWN, UNKNOWN) if best is None else (best.accuracy, best.balanced)
        yield Rung("control", accuracy, balanced=balanced, source=vision.before)
    else:
        reference = stages.get("reference")
        balanced = UNKNOWN if reference is None else reference.balanced
        compared = None if verdict is None else verdict.reference
        if not known(probing.reference) and compared is not None and compared.compared:
            # Run after the diagnosis, which therefore states no loss from here.
            yield Rung("reference", compared.accuracy, source=compared.name, used=compared.informative)
        else:
            yield Rung(
                "reference", probing.reference, balanced=balanced, source=probing.reference_name, used=informative
            )
    for name in ("vision", "connector", "llm", "answer"):
        if name == "answer" and probing.mapping is not None and "scores" in probing.mapping.readings:
            yield Rung("label", probing.mapping.readings["scores"].accuracy, source="label scores")
        stage = stages.get(name)
        if stage is None:
            yield Rung(name, probing.answer if name == "answer" else UNKNOWN)
            continue
        differs = known(stage.own) and abs(stage.own.value - stage.accuracy.value) > _SHOWN
        own = stage.own if differs and name != "answer" else UNKNOWN
        yield Rung(name, stage.accuracy, own, stage.balanced, stage.source)


def _site(layer: str, pooling: str) -> str:
    return f"{layer} ({pooling})"


def _steps(effects: Sequence[Effect], at: dict[str, int], *, informative: bool) -> Iterator[Step]:
    for effect in effects:
        before, after = _STEPS[effect.mode]
        if before == "reference":
            before = "control" if "control" in at else before
            if before == "reference" and not informative:
                continue
        if before in at and after in at and known(effect.loss):
            verdict: StepVerdict = "unclear" if effect.verdict == "cannot tell" else effect.verdict
            yield Step(at[before], at[after], effect.loss, verdict, effect.why)


def _unprobed(dataset: DatasetRuns, verdict: Verdict) -> Ladder:
    """Return a ladder of what is known without probes."""
    result, baseline = verdict.result, verdict.reference
    rungs = [Rung("reference", baseline.accuracy, source=baseline.name, used=baseline.informative)]
    if not baseline.compared:
        rungs = [Rung("reference", UNKNOWN)]
    summary = result.task.summary
    label = summary.label_scores.get("sum", {}).get("accuracy") if isinstance(summary, Summary) else None
    if label is not None:
        rungs.append(Rung("label", label, source="label scores"))
    balanced = result.metrics.get("balanced", UNKNOWN)
    rungs.append(Rung("answer", verdict.accuracy, balanced=balanced, source="answer"))
    steps = []
    gap = baseline.difference
    if baseline.compared and baseline.informative and known(gap):
        loss = Estimate(-gap.value, -gap.high, -gap.low)
        steps.append(Step(0, len(rungs) - 1, loss, "stage unknown"))
    return Ladder(
        subject=verdict.subject,
        result=result,
        chart="",
        rungs=tuple(rungs),
        steps=tuple(steps),
        guess=verdict.guess.accuracy.value if verdict.guess.name else math.nan,
        documents=verdict.questions,
        groups=result.group_count or 0,
        sentences=(text("signal.txt.jinja", "unprobed"), ""),
        evidence=causal_evidence(dataset, verdict.subject),
        reference=_reference_subject(dataset, baseline.name),
        command=probe_command(verdict),
    )


def probe_command(verdict: Verdict) -> str:
    """Return the command that probes a model as it was run; only the task if its run does not say how."""
    command = verdict.result.run.command
    values = {name: clean(command.get(name) or "") for name in ("model", "model_args")}
    return text("signal.txt.jinja", "probe_command", task=verdict.probe_task, **values)


def _reference_subject(dataset: DatasetRuns, name: str) -> Subject | None:
    return next((subject for subject in dataset.subjects if subject.reference and subject.label == name), None)
