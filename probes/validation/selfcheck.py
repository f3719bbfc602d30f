"""Validate the diagnosis on models with a known fault.

A healthy model is broken on purpose (:mod:`medmllm_plugins.probes.validation.planted_faults`) and evaluated on
labelled documents. Its features and answers are diagnosed by the same code as in any evaluation. The
reference classifier is a probe on the healthy tower, fitted on other documents.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from medmllm_plugins.data.core.documents import FOLDS, Document, Fold
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import DataError
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import Generation, LoadedModel
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.probes.validation.planted_faults import HEALTHY, KINDS, Fault, class_directions, plant_fault
from medmllm_plugins.prompts.feature_options import MEAN, FeatureOptions
from medmllm_plugins.prompts.protocols import Question, ask
from medmllm_plugins.results.feature_store import FeatureStore, Header
from medmllm_plugins.results.probe_records import MODES, Diagnosis
from medmllm_plugins.utils.plain_text import text_table

SIZES: Final[dict[Fold, int]] = {"train": 400, "validation": 160, "test": 320}
"""Number of documents in a trial, by fold."""
BATCH: Final = 40
OPTIONS: Final = Options(layers=("connector",), permutations=1, controls=1)
"""The verdicts use only the ends of the stages."""
CLEAR_STRENGTHS: Final = (2, 3)
"""Strengths at which the diagnosis must name the fault."""
BLANK: Final = Image.new("RGB", (64, 64), (128, 128, 128))


@dataclass(frozen=True, slots=True)
class Trial:
    """A planted fault and the diagnosis of the broken model.

    Attributes:
        fault: the planted fault.
        diagnosis: the diagnosis.
        without_reference: the diagnosis without a reference classifier.
    """

    fault: Fault
    diagnosis: Diagnosis
    without_reference: Diagnosis

    @property
    def correct(self) -> bool:
        """Whether the planted mode was named, or no mode for a healthy model."""
        return self.diagnosis.named == (None if self.fault.mode == "none" else self.fault.mode)

    @property
    def misattributed(self) -> bool:
        """Whether a mode other than the planted one was named."""
        return self.diagnosis.named is not None and self.diagnosis.named != self.fault.mode

    @property
    def misattributed_without_reference(self) -> bool:
        """The same without a reference, which faults of the tower can hardly be detected without."""
        named = self.without_reference.named
        return named is not None and named != self.fault.mode

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "fault": self.fault.name,
            "mode": self.fault.mode,
            "strength": self.fault.strength,
            "seed": self.fault.seed,
            "correct": self.correct,
            **self.diagnosis.to_dict(),
            "named_without_reference": self.without_reference.named,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all trials.

    Attributes:
        trials: the trials.
    """

    trials: tuple[Trial, ...]

    @property
    def sensitivity(self) -> float:
        """Fraction of faults of strengths 2 and 3 whose mode was named correctly."""
        return _fraction(
            [trial.correct for trial in self.trials if trial.fault.strength in CLEAR_STRENGTHS and _broken(trial)]
        )

    @property
    def false_alarms(self) -> float:
        """Fraction of healthy models for which a fault was named."""
        return _fraction([not trial.correct for trial in self.trials if not _broken(trial)])

    @property
    def misattributed(self) -> float:
        """Fraction of mild faults for which another mode was named."""
        return _fraction([trial.misattributed for trial in self.trials if trial.fault.strength == 1 and _broken(trial)])

    @property
    def misattributed_without_reference(self) -> float:
        """Fraction of all trials in which a wrong mode is named without a reference."""
        return _fraction([trial.misattributed_without_reference for trial in self.trials])

    @property
    def passed(self) -> bool:
        """Whether the diagnosis meets the limits that this package promises."""
        wrong = self.misattributed > 0.10 or self.misattributed_without_reference > 0.10
        return not (self.sensitivity < 0.95 or self.false_alarms > 0.05 or wrong)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "passed": self.passed,
            "trials": len(self.trials),
            "named_correctly_at_strengths_2_and_3": self.sensitivity,
            "false_alarms": self.false_alarms,
            "mild_faults_misattributed": self.misattributed,
            "misattributed_without_reference": self.misattributed_without_reference,
            "by_fault": [
                {"fault": name, "mode": mode, "strength": strength, "named": dict(counts)}
                for (mode, name, strength), counts in self.table().items()
            ],
            "each": [trial.to_dict() for trial in self.trials],
        }

    def table(self) -> dict[tuple[str, str, int], Counter[str]]:
        """Count how often each mode was named, by planted mode, kind and strength."""
        counts: dict[tuple[str, str, int], Counter[str]] = {}
        for trial in self.trials:
            key = (trial.fault.mode, trial.fault.name, trial.fault.strength)
            counts.setdefault(key, Counter())[trial.diagnosis.named or "none"] += 1
        return counts

    def render(self) -> str:
        """Return the results as text for people."""
        rows = [("planted", "fault", "strength", "named")]
        rows += [
            (mode, name, str(strength), ", ".join(f"{named} {count}" for named, count in counts.most_common()))
            for (mode, name, strength), counts in sorted(self.table().items())
        ]
        return "\n".join(
            [
                *text_table(rows),
                f"faults of strengths 2 and 3 named correctly: {self.sensitivity:.1%} (required: at least 95%)",
                f"false alarms on healthy models: {self.false_alarms:.1%} (required: at most 5%)",
                f"mild faults attributed to another mode: {self.misattributed:.1%} (required: at most 10%)",
                f"wrong mode named without a reference: {self.misattributed_without_reference:.1%} "
                "(required: at most 10%)",
                "passed" if self.passed else "FAILED",
            ]
        )


def faults_for_seed(seed: int) -> list[Fault]:
    """Return the faults of one seed: none, and each mode at each strength, with its kinds in turn."""
    faults = [
        Fault(KINDS[mode][(seed + strength) % len(KINDS[mode])], mode, strength, seed)
        for mode in MODES
        for strength in (1, 2, 3)
    ]
    return [replace(HEALTHY, seed=seed), *faults]


class FaultBench:
    """A healthy model and a data set on which faults are planted and diagnosed."""

    def __init__(self, loaded: LoadedModel, data: Dataset, folder: Path) -> None:
        """Evaluate the healthy model on all documents once.

        Args:
            loaded: the model.
            data: a data set that it classifies well.
            folder: folder for features; several tens of megabytes.
        """
        self._loaded, self._data, self._folder = loaded, data, folder
        self._question: Question = ask("closed_set", data.spec.modality, data.spec.classes)
        self._documents = {document.id: document for document in data.documents}
        self._controls: dict[str, Any] = {}
        self.healthy, self._answers = self._evaluate(data.documents, HEALTHY, folder / "healthy", {})

    def trial(self, fault: Fault) -> Trial:
        """Break the model, evaluate and diagnose it, on documents chosen by the fault's seed.

        Raises:
            DataError: the data set is too small.
        """
        chosen, others = self._choose(fault.seed)
        part = self.healthy.only(chosen)
        if fault.mode == "none":
            store, outcomes = part, [self._answers[name] for name in _test_ids(part)]
        else:
            samples = read_labelled_features(part)
            train = samples.rows["train"]
            labels = [samples.labels[number] for number in samples.of("train")]
            features = torch.from_numpy(part.features("connector", MEAN, train)).double()
            directions = {"connector": class_directions(features, labels)}
            documents = [self._documents[str(name)] for name in part.index["document"]]
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                store, answers = self._evaluate(documents, fault, Path(folder), directions)
                return self._judge(fault, store, list(answers.values()), others)
        return self._judge(fault, store, outcomes, others)

    def _judge(self, fault: Fault, store: FeatureStore, outcomes: Sequence[Outcome], others: Ints) -> Trial:
        analysis = analyse(store, outcomes, OPTIONS, reference=self._reference(store, others))
        return Trial(fault, analysis.diagnosis, analysis.diagnosis_without_reference)

    def _choose(self, seed: int) -> tuple[Ints, Ints]:
        """Choose rows of the healthy store for the trial, and other rows of its train fold; whole groups."""
        generator = np.random.default_rng((seed, 2))
        index = self.healthy.index
        fold, group = index["fold"].astype(str).to_numpy(), index["group"].astype(str).to_numpy()
        chosen, others = [], np.empty(0, dtype=np.intp)
        for part in FOLDS:
            rows = np.flatnonzero(fold == part)
            order = {name: rank for rank, name in enumerate(generator.permutation(np.unique(group[rows])))}
            rows = rows[np.argsort([order[name] for name in group[rows]], kind="stable")]
            chosen.append(rows[: SIZES[part]])
            if part == "train":
                taken = set(group[chosen[0]])
                others = np.array([row for row in rows if group[row] not in taken][: SIZES["train"]], dtype=np.intp)
        if len(others) < SIZES["train"] // 2:
            raise DataError(
                f"{self._data.spec.title}: expected at least {SIZES['train'] * 3 // 2} train documents, a third of "
                f"them for the reference, got {len(others)} for the reference. Use a larger data set."
            )
        return np.concatenate(chosen), others

    def _reference(self, store: FeatureStore, others: Ints) -> Reference:
        """Fit a probe on the healthy tower to other documents, and predict the trial's test documents."""
        names = set(store.index["id"].astype(str))
        trial_rows = [row for row, name in enumerate(self.healthy.index["id"].astype(str)) if name in names]
        folds = self.healthy.index["fold"].astype(str).to_numpy()
        held_out = [row for row in trial_rows if folds[row] != "train"]
        part = self.healthy.only(np.array([*others, *held_out], dtype=np.intp))
        samples = read_labelled_features(part)
        fitted = fit_probes(part, samples, OPTIONS)
        tower = [index for index, site in enumerate(fitted.sites) if site.part == "vision"]
        best = min(tower, key=lambda index: fitted.validation_loss[index])
        ids = part.index["id"].astype(str).to_numpy()[samples.rows["test"]]
        predicted = [samples.labels[number] for number in fitted.test[best]]
        return Reference("a probe on the healthy tower", self._folder, dict(zip(ids, predicted, strict=True)))

    def _evaluate(
        self, documents: Sequence[Document], fault: Fault, folder: Path, directions: dict[str, torch.Tensor]
    ) -> tuple[FeatureStore, dict[str, Outcome]]:
        """Record features of all documents, and return scored answers to the test fold by id."""
        question, spec, loaded = self._question, self._data.spec, self._loaded
        labels = list(question.labels)
        header = Header("selfcheck", spec.name, tuple(spec.labels), self._data.fingerprint, "model", "", layers=())
        outcomes: dict[str, Outcome] = {}
        planting = plant_fault(loaded, fault, directions=directions or None, question=question.text, labels=labels)
        example = loaded.prepare([question.text], [self._as_input(self._data.image(documents[0]))])
        with planting, _recording(loaded, header, folder, example) as recorder:
            label_ids = [ids[loaded.prefix_length :] for ids in loaded.label_ids(question.text, labels)]
            blank_input = self._as_input(BLANK)
            (blank,) = loaded.generate([question.text], [blank_input], max_new_tokens=0, labels=labels)
            for fold, batch in _batches(documents):
                images = [self._data.image(document) for document in batch]
                shown = [self._as_input(image) for image in images]
                inputs = loaded.prepare([question.text] * len(batch), shown)
                answers = loaded.generate(
                    [question.text] * len(batch),
                    shown,
                    max_new_tokens=16 if fold == "test" else 0,
                    labels=None if fold == "train" else labels,
                    inputs=inputs,
                    watch=recorder.watch,
                )
                pairs = list(zip(batch, answers, strict=True))
                if fold == "test":
                    outcomes |= {document.id: _outcome(document, answer.text, question) for document, answer in pairs}
                for document, image in zip(batch, images, strict=True):
                    if document.id not in self._controls:
                        self._controls[document.id] = control_features(image)
                recorder.keep(
                    [_feature_record(document, fold, answer, blank) for document, answer in pairs],
                    inputs,
                    [self._controls[document.id] for document in batch],
                    label_ids,
                )
        return FeatureStore(folder), outcomes

    def _as_input(self, image: Any) -> Any:
        return [image] if self._loaded.shows == "images" else image


def _batches(documents: Sequence[Document]) -> Iterator[tuple[Fold, list[Document]]]:
    """Yield the documents in batches of one fold each."""
    for fold in FOLDS:
        members = [document for document in documents if document.fold == fold]
        for start in range(0, len(members), BATCH):
            yield fold, members[start : start + BATCH]


def _feature_record(document: Document, fold: Fold, answer: Generation, blank: Generation) -> dict[str, Any]:
    """Return a row of the feature store's index."""
    scored = answer.scores is not None
    return {
        "id": document.id,
        "document": document.id,
        "group": document.group,
        "fold": fold,
        "label": document.labels[0],
        "answer": answer.text,
        "scores": list(answer.scores or ()) if scored else None,
        "blank": list(blank.scores or ()) if scored else None,
        "label_tokens": None,
    }


@contextmanager
def _recording(
    loaded: LoadedModel, header: Header, folder: Path, example: Mapping[str, torch.Tensor]
) -> Iterator[FeatureRecorder]:
    recorder = FeatureRecorder(loaded, FeatureOptions(random_encoder=False), header, folder, rank=0, example=example)
    try:
        yield recorder
    finally:
        recorder.close()


def _outcome(document: Document, text: str, question: Question) -> Outcome:
    read = question.read(text)
    return Outcome(document.id, document.group, document.labels[0], read.label, read.status)


def _test_ids(store: FeatureStore) -> list[str]:
    return list(store.index.loc[store.index["fold"].astype(str) == "test", "id"].astype(str))


def _broken(trial: Trial) -> bool:
    return trial.fault.mode != "none"


def _fraction(hits: Sequence[bool]) -> float:
    return float(np.mean(hits)) if hits else float("nan")


def selfcheck(
    loaded: LoadedModel, data: Dataset, *, seeds: Sequence[int], say: Callable[[str], None] | None = None
) -> Report:
    """Plant all faults at all strengths, and diagnose each broken model.

    Args:
        loaded: a healthy model.
        data: a data set that it classifies well; images, one class each.
        seeds: seeds; one round of trials each.
        say: receives a line about each trial.

    Raises:
        DataError: the data set is too small.
    """
    with tempfile.TemporaryDirectory(prefix="medmllm-selfcheck-") as folder:
        bench = FaultBench(loaded, data, Path(folder))
        trials = []
        for seed in seeds:
            for fault in faults_for_seed(seed):
                trial = bench.trial(fault)
                trials.append(trial)
                if say is not None:
                    losses = ", ".join(f"{100 * effect.loss.value:+.1f}" for effect in trial.diagnosis.effects)
                    mark = (
                        "" if trial.correct else "  <- not named" if not trial.misattributed else "  <- MISATTRIBUTED"
                    )
                    say(
                        f"seed {seed}: {fault.name} {fault.strength} ({fault.mode}): named {trial.diagnosis.named}; "
                        f"lost {losses}{mark}"
                    )
        return Report(tuple(trials))
