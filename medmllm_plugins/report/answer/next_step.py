"""The next step: what the diagnosis suggests, as a hypothesis, and the command that tests it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.answer import commands
from medmllm_plugins.report.answer.coverage import coverage
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.templating import anchor, text, texts
from medmllm_plugins.report.verdict import Verdict
from medmllm_plugins.results.probe_records import HANDOVER, Diagnosis
from medmllm_plugins.results.repair_records import RepairResult, RepairStudy
from medmllm_plugins.results.report_records import NextStepRecord

OUTPUT_REPAIRS: Final = ("relabelling", "class_bias", "blank_image", "affine")
STAGE_REPAIRS: Final[Mapping[str, tuple[str, ...]]] = {
    "vision": ("vision_lora",),
    "connector": ("connector_adapter", "connector_lora"),
    "comprehension": ("block_adapter", "attention_lora"),
    "mapping": (*OUTPUT_REPAIRS, "wording", "few_shot"),
}
"""Repairs at the stage of each failure mode; see docs/repair.md."""
INTERFACE_REPAIRS: Final[Mapping[str, tuple[str, ...]]] = {
    "image -> vision": ("vision_lora",),
    "vision -> connector": ("connector_adapter", "connector_lora"),
    "connector -> llm": ("connector_adapter", "soft_prompt", "block_adapter"),
    "llm": ("block_adapter", "attention_lora"),
    "llm -> answer": STAGE_REPAIRS["mapping"],
}
"""Repairs at the interfaces that an unread hand-over may concern."""
UNREAD_REPAIRS: Final = ("class_bias", "affine", "wording", "few_shot")
"""With output repairs the label that scores highest is the answer, so that no text has to be read."""
CHEAP_FIRST: Final = (
    *(*OUTPUT_REPAIRS, "wording", "few_shot", "soft_prompt"),
    *("connector_adapter", "block_adapter", "connector_lora", "attention_lora", "vision_lora"),
)
"""Repairs in the order of ``medmllm repair``; the report cannot import it, a test compares the two."""
STRONGER_BASELINE: Final = "timm:resnet18"
"""A small fine-tuned network, where pixels are no better than guessing."""
MAX_COMMANDS: Final = 2
"""More would not fit the first screen."""


@dataclass(frozen=True, slots=True)
class SuggestedCommand:
    """A command with its purpose in a few words."""

    label: str
    line: str


@dataclass(frozen=True, slots=True)
class NextStep:
    """The next step for one model.

    Attributes:
        kind: name of the rule that chose it, without ``step_``.
        model: name of the model; empty if there is none.
        number: its number.
        observation: what was seen.
        hypothesis: what follows if that is the cause.
        caution: what to check before; empty if there is nothing.
        evidence: ids of elements that show the evidence of the caution.
    """

    kind: str
    model: str
    number: int | None
    observation: str
    hypothesis: str
    commands: tuple[SuggestedCommand, ...]
    caution: str = ""
    evidence: tuple[str, ...] = ()

    def record(self) -> NextStepRecord:
        """Return the step as ``report.json`` has it."""
        return NextStepRecord(
            model=self.model,
            observation=self.observation,
            hypothesis=self.hypothesis,
            caution=self.caution,
            commands=tuple(suggested.line for suggested in self.commands),
        )


def next_steps(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> tuple[NextStep, ...]:
    """Return a next step for each model, first that of the best one that was probed."""
    if not verdicts:
        observation, hypothesis = texts("answer.txt.jinja", "step_no_model")
        command = SuggestedCommand(text("answer.txt.jinja", "label_models"), "medmllm models")
        return (NextStep("no_model", "", None, observation, hypothesis, (command,)),)

    def rank(verdict: Verdict) -> tuple[bool, bool, float]:
        examined = bool(verdict.probed) or _study(dataset, verdict) is not None
        accuracy = verdict.accuracy.value if known(verdict.accuracy) else 0.0
        return not examined, bool(verdict.unread), -accuracy

    return tuple(_step(dataset, verdict) for verdict in sorted(verdicts, key=rank))


def _step(dataset: DatasetRuns, verdict: Verdict) -> NextStep:
    """Return the next step for one model."""
    studied = _study(dataset, verdict)
    # Where probes support no loss, repairs that change nothing are no news.
    lossless = bool(verdict.probed) and not verdict.unread and _stages(verdict.diagnosis) is None
    if studied is not None and not (lossless and _best(studied[1]) is None):
        return _repaired(dataset, verdict, *studied)
    result = _diagnosed_result(dataset, verdict)
    baseline = _baseline(verdict)
    if verdict.unread:
        letter = ("label_letter", commands.letter_command(verdict.result))
        repair = ("label_repair", commands.repair_command(verdict.result, UNREAD_REPAIRS))
        return _made("unread", dataset, verdict, [letter, repair])
    covered = coverage(verdict.result)
    if covered.partial:
        probe = commands.probe_command(result)
        evaluate = probe if verdict.probed else commands.evaluate_command(verdict.result)
        suggested = [("label_evaluate", evaluate), ("label_probe", "" if verdict.probed else probe), baseline]
        return _made("limited", dataset, verdict, suggested, covered=covered)
    if not verdict.probed:
        return _made("not_probed", dataset, verdict, [("label_probe", commands.probe_command(result)), baseline])
    robustness = ("label_robustness", _robustness(dataset, verdict))
    if verdict.answers_match_reference and not verdict.diagnosis.patched:
        return _made("matches", dataset, verdict, [robustness])
    stages = _stages(verdict.diagnosis)
    if stages:
        kind, candidates = stages
        if candidates == list(CHEAP_FIRST):
            repair = ("label_all_repairs", commands.repair_command(result))
        else:
            repair = ("label_repair", commands.repair_command(result, candidates))
        return _made(kind, dataset, verdict, [repair, baseline])
    diagnose = ("label_diagnose", commands.diagnose_command(result.run) if baseline[1] else "")
    suggested = [baseline, diagnose, robustness]
    return _made("no_loss", dataset, verdict, suggested, needs_reference=bool(baseline[1]))


def _stages(diagnosis: Diagnosis) -> tuple[str, list[str]] | None:
    """Return the rule and the repairs that fit a diagnosis; ``None`` if it supports no loss."""
    modes: list[str] = list(diagnosis.patched) or [effect.mode for effect in diagnosis.charged]
    if not diagnosis.patched and diagnosis.named == HANDOVER:
        names = [name for interface in diagnosis.candidates for name in INTERFACE_REPAIRS[interface]]
        names += [name for mode in modes for name in STAGE_REPAIRS[mode]]
        return "handover", _cheap_first(names)
    if diagnosis.named is not None and diagnosis.named != HANDOVER:
        return diagnosis.named, list(STAGE_REPAIRS[diagnosis.named])
    if modes:
        return "several", _cheap_first(name for mode in modes for name in STAGE_REPAIRS[mode])
    return None


def _cheap_first(names: Iterable[str]) -> list[str]:
    chosen = set(names)
    return [name for name in CHEAP_FIRST if name in chosen]


def _repaired(dataset: DatasetRuns, verdict: Verdict, result: TaskResult, study: RepairStudy) -> NextStep:
    """Return what a study of repairs measured."""
    repair = _best(study)
    probe = ("label_probe", "" if verdict.probed else commands.probe_command(result))
    values = {"study": study, "elsewhere": _question(result) != _question(verdict.result)}
    if repair is None:
        return _made("not_repaired", dataset, verdict, [probe, _baseline(verdict)], **values)
    after = ("label_probe_repaired", commands.probe_repaired_command(result, repair.folder))
    rest = [after] if after[1] else [probe]
    return _made("repaired", dataset, verdict, [*rest, _baseline(verdict)], repair=repair, **values)


def _best(study: RepairStudy) -> RepairResult | None:
    return next((repair for repair in study.repairs if study.best and repair.name == study.best), None)


def _study(dataset: DatasetRuns, verdict: Verdict) -> tuple[TaskResult, RepairStudy] | None:
    """Return the study of a model's repairs on its main question, or one of another question that found a repair."""
    studies = [pair for pair in dataset.repaired() if pair[0].subject is verdict.subject]
    own = [pair for pair in studies if _question(pair[0]) == _question(verdict.result)]
    choice = own or ([] if verdict.probed else [pair for pair in studies if _best(pair[1]) is not None])
    return min(choice, key=lambda pair: (_best(pair[1]) is None, pair[0].task.name)) if choice else None


def _question(result: TaskResult) -> str:
    return commands.asking_task(result.task.name)


def _diagnosed_result(dataset: DatasetRuns, verdict: Verdict) -> TaskResult:
    """Return the result that the diagnosis is of; the main one without a diagnosis."""
    results = [
        result
        for result, probing in dataset.probed()
        if result.subject is verdict.subject and probing.diagnosis.effects == verdict.diagnosis.effects
    ]
    return results[0] if results else verdict.result


def _baseline(verdict: Verdict) -> tuple[str, str]:
    """Return the command that adds a reference classifier; an empty one if there is one to compare with."""
    reference = verdict.reference
    if not reference.compared:
        return "label_baseline", commands.baseline_command(verdict.result)
    if not reference.informative and "timm" not in reference.name:
        return "label_baseline_stronger", commands.baseline_command(verdict.result, STRONGER_BASELINE)
    return "label_baseline", ""


def _robustness(dataset: DatasetRuns, verdict: Verdict) -> str:
    """Return the command that asks in those ways that were not tried; empty if all were."""
    own = [result for result in dataset.of(verdict.subject) if result.task.scored]
    ways = {
        "order=varied": any(result.task.varied == "order" for result in own) or verdict.result.multilabel,
        "paraphrase=all": any(result.task.varied == "wording" for result in own),
        "image=blank": any(result.task.image == "blank" for result in own),
    }
    missing = [argument for argument, tried in ways.items() if not tried]
    return commands.evaluate_command(verdict.result, *missing) if missing else ""


def _made(
    kind: str, dataset: DatasetRuns, verdict: Verdict, suggested: Iterable[tuple[str, str]], **values: Any
) -> NextStep:
    observation, hypothesis = texts("answer.txt.jinja", f"step_{kind}", verdict=verdict, **values)
    lines = [SuggestedCommand(text("answer.txt.jinja", label), line) for label, line in suggested if line]
    count = _shortcut_warnings(dataset, verdict)
    return NextStep(
        kind=kind,
        model=verdict.subject.label,
        number=verdict.subject.number,
        observation=observation,
        hypothesis=hypothesis,
        commands=tuple(lines[:MAX_COMMANDS]),
        caution=text("answer.txt.jinja", "step_shortcut", count=count) if count else "",
        evidence=(f"table-{anchor(f'{dataset.name}.shortcuts')}", "warnings", "appendix") if count else (),
    )


def _shortcut_warnings(dataset: DatasetRuns, verdict: Verdict) -> int:
    return sum(
        len(probing.shortcuts.warnings)
        for result, probing in dataset.probed()
        if result.subject is verdict.subject and probing.shortcuts is not None
    )
