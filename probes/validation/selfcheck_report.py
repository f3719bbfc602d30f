"""Judge diagnoses of known faults, and count the judgements by class of fault."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from medmllm_plugins.probes.validation.fault_kinds import Fault, FaultGroup
from medmllm_plugins.results.probe_records import HANDOVER, Diagnosis, Interface, Mode, ProbeAnalysis
from medmllm_plugins.utils.plain_text import text_table

TrialGroup: TypeAlias = Literal[
    "healthy",
    "harmless",
    "lossless",
    "destroying",
    "mild destroying",
    "form",
    "held-out form",
    "pair",
    "preprocessing",
    "tagged",
]
Judgement: TypeAlias = Literal["correct", "undecided", "wrong"]

LIMITS: Final[Mapping[TrialGroup, tuple[float, float]]] = {
    "healthy": (0.0, 0.05),
    "harmless": (0.0, 0.05),
    "lossless": (0.0, 0.05),
    "destroying": (0.95, 0.05),
    "mild destroying": (0.0, 0.10),
    "form": (0.0, 0.0),
    "held-out form": (0.0, 0.0),
    "pair": (0.0, 0.05),
    "preprocessing": (0.0, 0.05),
    "tagged": (0.95, 0.05),
}
"""By group, the smallest share of correct and the largest share of wrong diagnoses that pass."""
WITHOUT_REFERENCE: Final = 0.05
"""The largest share of all trials that may be diagnosed wrongly without a reference classifier."""
COSTLY: Final = 0.20
"""Faults that cost the answers at least this accuracy are also counted on their own: a diagnosis should detect them."""


def group_of(faults: Sequence[Fault]) -> TrialGroup:
    """Return the group that a trial with these faults is counted in."""
    if len(faults) > 1:
        return "pair"
    group: FaultGroup = faults[0].kind.group
    return "mild destroying" if group == "destroying" and faults[0].strength == 1 else group


def judge_faults(faults: Sequence[Fault], diagnosis: Diagnosis) -> Judgement:
    """Judge the diagnosis of a model with these faults, see :func:`judge`.

    Of faults that destroy the class, an unread hand-over is undecided, because the stage could be named.
    """
    modes = {mode for fault in faults for mode in fault.kind.modes}
    interfaces = {interface for fault in faults for interface in fault.kind.interfaces}
    judgement = judge(modes, interfaces, diagnosis)
    destroying = all(fault.kind.group == "destroying" for fault in faults)
    return "undecided" if destroying and judgement == "correct" and diagnosis.named == HANDOVER else judgement


def judge(modes: Collection[Mode], interfaces: Collection[Interface], diagnosis: Diagnosis) -> Judgement:
    """Judge a diagnosis.

    - Where nothing is broken, it is correct to name nothing, and wrong to name anything.
    - It is correct to name a mode that is broken, or an unread hand-over whose candidates include a broken interface.
    - If several modes are broken, it is also correct to name none of the supported ones, all of them broken.
    - To name nothing is undecided otherwise, and everything else is wrong.

    Args:
        modes: the modes that it is right to name; empty where nothing is broken.
        interfaces: the interfaces that are broken.
        diagnosis: the diagnosis.
    """
    named = diagnosis.named
    if not modes:
        return "correct" if named is None else "wrong"
    if named is None:
        supported = {effect.mode for effect in diagnosis.supported}
        return "correct" if len(modes) > 1 and supported and supported <= set(modes) else "undecided"
    if named == HANDOVER:
        return "correct" if set(interfaces) & set(diagnosis.candidates) else "wrong"
    return "correct" if named in modes else "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The analysis of a model whose faults are known.

    Attributes:
        name: what was done to the model.
        group: the group that it is counted in.
        seed: seed of the faults and of the choice of documents.
        faults: the planted faults.
        judgement: whether the diagnosis is right.
        judgement_without_reference: whether it would be without a reference classifier, which faults of the tower can
            hardly be detected without.
        analysis: the analysis.
        cost: accuracy of the healthy model's answers to the same documents minus that of these answers; NaN without a
            healthy model.
        seconds: wall time.
    """

    name: str
    group: TrialGroup
    seed: int
    faults: tuple[Fault, ...] = ()
    judgement: Judgement
    judgement_without_reference: Judgement
    analysis: ProbeAnalysis
    cost: float = math.nan
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """What was concluded, such as ``connector`` or ``unread hand-over (llm)``."""
        diagnosis = self.analysis.diagnosis
        if diagnosis.named == HANDOVER:
            return f"{HANDOVER} ({', '.join(getattr(diagnosis, 'candidates', ()))})"
        return diagnosis.named or "none"

    def summary(self) -> str:
        """Return one line for people."""
        losses = ", ".join(f"{100 * effect.loss.value:+.1f}" for effect in self.analysis.diagnosis.effects)
        mark = "" if self.judgement == "correct" else f"  <- {self.judgement.upper()}"
        return f"seed {self.seed}: {self.name} ({self.group}): {self.verdict}; lost {losses}{mark}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: all that rules of a diagnosis can be studied on without the model."""
        analysis = self.analysis.to_dict()
        for name in ("options", "labels", "headline", "health", "seconds"):
            analysis.pop(name, None)
        return {
            "name": self.name,
            "group": self.group,
            "seed": self.seed,
            "faults": [{"name": fault.name, "strength": fault.strength} for fault in self.faults],
            "modes": sorted({mode for fault in self.faults for mode in fault.kind.modes}),
            "interfaces": sorted({interface for fault in self.faults for interface in fault.kind.interfaces}),
            "judgement": self.judgement,
            "judgement_without_reference": self.judgement_without_reference,
            "cost": None if math.isnan(self.cost) else round(self.cost, 4),
            "seconds": round(self.seconds, 2),
            "analysis": analysis,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all trials.

    Attributes:
        trials: the trials.
    """

    trials: tuple[Trial, ...]

    def counts(self, group: TrialGroup, *, costly: bool = False) -> Counter[Judgement]:
        """Count the judgements of a group, or of its trials that cost at least :data:`COSTLY`."""
        return Counter(
            trial.judgement for trial in self.trials if trial.group == group and (not costly or trial.cost >= COSTLY)
        )

    def keeps_limits(self, group: TrialGroup) -> bool:
        """Return whether a group keeps its limits; one without trials does."""
        counts = self.counts(group)
        least_correct, most_wrong = LIMITS[group]
        total = counts.total()
        return counts["correct"] >= least_correct * total and counts["wrong"] <= most_wrong * total

    @property
    def wrong_without_reference(self) -> float:
        """Fraction of all trials that are diagnosed wrongly without a reference classifier."""
        return float(np.mean([trial.judgement_without_reference == "wrong" for trial in self.trials]))

    @property
    def passed(self) -> bool:
        """Whether the diagnosis keeps the limits that this package promises."""
        return all(map(self.keeps_limits, get_args(TrialGroup))) and self.wrong_without_reference <= WITHOUT_REFERENCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the trials themselves."""
        return {
            "passed": self.passed,
            "trials": len(self.trials),
            "wrong_without_reference": self.wrong_without_reference,
            "groups": {
                group: {
                    **{judgement: self.counts(group)[judgement] for judgement in get_args(Judgement)},
                    "costly": {
                        judgement: self.counts(group, costly=True)[judgement] for judgement in get_args(Judgement)
                    },
                    "least_correct": LIMITS[group][0],
                    "most_wrong": LIMITS[group][1],
                    "kept": self.keeps_limits(group),
                }
                for group in get_args(TrialGroup)
                if self.counts(group)
            },
            "by_name": [
                {"group": group, "name": name, "verdicts": dict(verdicts)}
                for (group, name), verdicts in self._verdicts().items()
            ],
        }

    def render(self) -> str:
        """Return the results as text for people."""
        rows = [("group", "model", "verdicts")]
        rows += [
            (group, name, ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common()))
            for (group, name), verdicts in self._verdicts().items()
        ]
        lines = [*text_table(rows), ""]
        for group in get_args(TrialGroup):
            if counts := self.counts(group):
                least_correct, most_wrong = LIMITS[group]
                required = f"at least {least_correct:.0%} correct, " if least_correct else ""
                judged = ", ".join(f"{counts[judgement]} {judgement}" for judgement in get_args(Judgement))
                costly = self.counts(group, costly=True)
                detected = (
                    ""
                    if not costly
                    else f"; of the {costly.total()} that cost {100 * COSTLY:.0f} points or more, "
                    f"{costly['correct']} correct"
                )
                lines.append(
                    f"{group}: {judged} (required: {required}at most {most_wrong:.0%} wrong){detected}"
                    f"{'' if self.keeps_limits(group) else '  <- NOT KEPT'}"
                )
        lines.append(
            f"wrong without a reference: {self.wrong_without_reference:.1%} (required: at most {WITHOUT_REFERENCE:.0%})"
        )
        return "\n".join([*lines, "passed" if self.passed else "FAILED"])

    def _verdicts(self) -> dict[tuple[str, str], Counter[str]]:
        """Count the verdicts by group and name."""
        verdicts: dict[tuple[str, str], Counter[str]] = {}
        for trial in sorted(self.trials, key=lambda trial: get_args(TrialGroup).index(trial.group)):
            mark = {"correct": "", "undecided": " (undecided)", "wrong": " (WRONG)"}[trial.judgement]
            verdicts.setdefault((trial.group, trial.name), Counter())[trial.verdict + mark] += 1
        return verdicts
