"""Validate twin patching on models whose faults are known: the healthy model is the twin of the one that is broken."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.interventions.patch_effects import twin_effects
from medmllm_plugins.interventions.twin_patching import Answers, patch_sites, patch_twins
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.probes.validation.fault_kinds import PAIRS, Fault, FaultGroup, Strength, names_of
from medmllm_plugins.probes.validation.planted_faults import plant_faults
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.utils.plain_text import text_table

DOCUMENTS: Final = 80
"""Documents of the test fold in a trial."""
BATCH: Final = 40
TWIN_STRENGTH: Final[Strength] = 3
"""Strength of the faults."""
GROUPS: Final[tuple[FaultGroup, ...]] = ("destroying", "form", "held-out form")
"""Groups of single faults that are tried. Faults of the preprocessing change what both models see."""
NEEDS_FEATURES: Final = ("directions_removed",)
"""Kinds that are planted along directions of recorded features, of which patching has none."""
LEAST_CORRECT: Final = 0.97
COSTLY: Final = 0.20
"""Faults that cost the answers at least this accuracy count; patching needs a difference to restore."""
TwinJudgement: TypeAlias = Literal["correct", "part", "undecided", "wrong"]


@dataclass(frozen=True, slots=True)
class TwinTrial:
    """Twin patching of a model whose faults are known.

    Attributes:
        faults: the planted faults.
        result: what patching shows.
        judgement: ``correct`` if exactly the broken stages are named, ``part`` if one of two is, ``undecided`` if none
            is named, and ``wrong`` if an intact stage is.
    """

    faults: tuple[Fault, ...]
    result: TwinPatching
    judgement: TwinJudgement

    @property
    def name(self) -> str:
        """Names of the faults."""
        return " + ".join(fault.name for fault in self.faults)

    @property
    def costly(self) -> bool:
        """Whether the faults cost enough accuracy to be counted."""
        return self.result.better == "healthy" and self.result.difference.value >= COSTLY

    def summary(self) -> str:
        """Return one line for people."""
        stages = " and ".join(self.result.stages) or "none"
        cost = 100 * self.result.difference.value * (1 if self.result.better == "healthy" else -1)
        mark = "" if self.judgement == "correct" else f"  <- {self.judgement.upper()}"
        strengths = "+".join(str(fault.strength) for fault in self.faults)
        return f"seed {self.faults[0].seed}: {self.name} ({strengths}): {stages}; cost {cost:+.1f}{mark}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "faults": [asdict(fault) for fault in self.faults],
            "judgement": self.judgement,
            "costly": self.costly,
            "result": self.result.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class TwinReport:
    """The results of all trials."""

    trials: tuple[TwinTrial, ...]

    @property
    def counts(self) -> Counter[TwinJudgement]:
        """Judgements of the faults that cost enough."""
        return Counter(trial.judgement for trial in self.trials if trial.costly)

    @property
    def passed(self) -> bool:
        """Whether enough costly faults are named exactly."""
        return self.counts["correct"] >= LEAST_CORRECT * self.counts.total()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the trials themselves."""
        counts = self.counts
        return {
            "passed": self.passed,
            "trials": len(self.trials),
            "costly": {judgement: counts[judgement] for judgement in get_args(TwinJudgement)},
            "least_correct": LEAST_CORRECT,
        }

    def render(self) -> str:
        """Return the results as text for people."""
        rows: list[tuple[str, ...]] = [("faults", "trials", "costly", *get_args(TwinJudgement))]
        for name in dict.fromkeys(trial.name for trial in self.trials):
            trials = [trial for trial in self.trials if trial.name == name]
            counts = Counter(trial.judgement for trial in trials if trial.costly)
            numbers = (len(trials), counts.total(), *(counts[judgement] for judgement in get_args(TwinJudgement)))
            rows.append((name, *map(str, numbers)))
        total = self.counts.total()
        share = f"{self.counts['correct'] / total:.1%}" if total else "none"
        return "\n".join(
            [
                *text_table(rows),
                "",
                f"exactly the broken stages: {share} of {total} faults that cost {100 * COSTLY:.0f} points or more "
                f"(required: at least {LEAST_CORRECT:.0%})",
                "passed" if self.passed else "FAILED",
            ]
        )


def twin_selfcheck(
    loaded: LoadedModel,
    data: Dataset,
    *,
    seeds: Sequence[int],
    strength: Strength = TWIN_STRENGTH,
    kinds: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
    output: Path | None = None,
) -> TwinReport:
    """Break a model in every known way, and let twin patching with the healthy one name the broken stage.

    Args:
        loaded: the healthy model.
        data: a data set that it classifies well.
        seeds: seeds of faults and documents; every kind is tried once for each.
        strength: of all faults.
        kinds: kinds of single faults; all by default, and then pairs too.
        say: receives a line about each trial.
        output: a new file for one JSON object a trial, a line each.
    """
    bench = TwinBench(loaded, data)
    trials: list[TwinTrial] = []
    with ExitStack() as stack:
        file = None if output is None else stack.enter_context(output.open("x", encoding="utf-8"))
        for seed in seeds:
            for faults in planned_faults(seed, strength, kinds):
                trial = bench.trial(faults)
                trials.append(trial)
                if file is not None:
                    print(json.dumps(trial.to_dict(), ensure_ascii=False), file=file, flush=True)
                if say is not None:
                    say(trial.summary())
    return TwinReport(tuple(trials))


def planned_faults(seed: int, strength: Strength, kinds: Sequence[str] | None = None) -> list[tuple[Fault, ...]]:
    """Return the faults of one seed: every kind that can be planted without features, and pairs of these."""
    known = [name for group in GROUPS for name in names_of(group) if name not in NEEDS_FEATURES]
    singles: list[tuple[Fault, ...]] = [(Fault(name, strength, seed),) for name in kinds or known]
    pairs = [pair for pair in PAIRS if set(pair) <= set(known)] if kinds is None else []
    return [*singles, *(tuple(Fault(name, strength, seed) for name in pair) for pair in pairs)]


class TwinBench:
    """A healthy model, a copy of it that is broken, and documents to ask both about."""

    def __init__(self, loaded: LoadedModel, data: Dataset) -> None:
        """Copy the model; it is taken to be on one device."""
        self._healthy, self._data = loaded, data
        self._broken = copy.copy(loaded)
        self._broken.model = copy.deepcopy(loaded.model)
        self._question = ask("closed_set", data.spec.modality, data.spec.classes)
        self._sites = [site for site in patch_sites(loaded, every=2) if site.tokens == "all"]

    def trial(self, faults: tuple[Fault, ...]) -> TwinTrial:
        """Break the copy, and patch both models with each other's states."""
        question, classes = self._question, list(self._data.spec.labels)
        test = self._data.select(["test"])
        order = np.random.default_rng((faults[0].seed, 3)).permutation(len(test))[:DOCUMENTS]
        documents = [test[index] for index in order]
        broken: dict[Any, Any] = {}
        healthy: dict[Any, Any] = {}
        with plant_faults(self._broken, *faults, question=question.text, labels=list(question.labels)):
            for start in range(0, len(documents), BATCH):
                images = [self._shown(document) for document in documents[start : start + BATCH]]
                sides = patch_twins(
                    self._broken, self._healthy, question.text, images, list(question.labels), self._sites
                )
                for answers, side in zip((broken, healthy), sides, strict=True):
                    for site, some in side.items():
                        answers.setdefault(site, []).extend(some)

        def read(text: str) -> int:
            label = question.read(text).label
            return -1 if label is None else classes.index(label)

        truth = np.array([classes.index(document.labels[0]) for document in documents], dtype=np.intp)
        group = np.unique([document.group for document in documents], return_inverse=True)[1].astype(np.intp)
        named: list[tuple[str, Answers]] = [("broken", broken), ("healthy", healthy)]
        worse, better = sorted(
            named, key=lambda pair: float(np.mean([read(answer.text) for answer in pair[1][None]] == truth))
        )
        result = twin_effects(worse[1], better[1], truth, group, read, names=(worse[0], better[0]))
        return TwinTrial(faults, result, judge(faults, result))

    def _shown(self, document: Document) -> VisualInput:
        image = self._data.image(document)
        return [image] if self._healthy.shows == "images" else image


def judge(faults: Sequence[Fault], result: TwinPatching) -> TwinJudgement:
    """Judge the stages that patching names, see :class:`TwinTrial`."""
    broken, named = {fault.kind.modes[0] for fault in faults}, set(result.stages)
    if not named:
        return "undecided"
    if named == broken:
        return "correct"
    return "part" if named < broken else "wrong"
