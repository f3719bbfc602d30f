"""The diagnosis tried on models whose fault is known.

A healthy model is broken on purpose (:mod:`medmllm_plugins.probes.validation.planted_faults`), asked about documents whose truth is known,
and diagnosed from what its stages hold and what it answers, by the same code as any evaluation. The reference
classifier is a probe behind the healthy tower, fitted on other documents.
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
from medmllm_plugins.features.control_features import pixels
from medmllm_plugins.features.recorder import FeatureRecorder, RecordedDocument
from medmllm_plugins.features.store import FeatureStore
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.probes.validation.planted_faults import HEALTHY, KINDS, Fault, class_directions, plant_fault
from medmllm_plugins.prompts.feature_options import MEAN, FeatureOptions
from medmllm_plugins.prompts.protocols import Question, ask
from medmllm_plugins.results.probe_records import MODES, Diagnosis
from medmllm_plugins.utils.plain_text import text_table

SIZES: Final[dict[Fold, int]] = {"train": 400, "validation": 160, "test": 320}
"""Documents of a trial, by fold."""
BATCH: Final = 40
OPTIONS: Final = Options(layers=("connector",), permutations=1, controls=1)
"""The verdicts rest on the ends of the stages alone."""
CLEAR_STRENGTHS: Final = (2, 3)
"""Strengths at which a fault must be named."""
BLANK: Final = Image.new("RGB", (64, 64), (128, 128, 128))


@dataclass(frozen=True, slots=True)
class Trial:
    """One broken model and what was said of it.

    Attributes:
        fault: what was planted.
        diagnosis: what was found.
        alone: what is found without a reference classifier.
    """

    fault: Fault
    diagnosis: Diagnosis
    alone: Diagnosis

    @property
    def right(self) -> bool:
        """Whether the planted mode was named, or none of a healthy model."""
        return self.diagnosis.named == (None if self.fault.mode == "none" else self.fault.mode)

    @property
    def misattributed(self) -> bool:
        """Whether another mode was named than the planted one."""
        return self.diagnosis.named is not None and self.diagnosis.named != self.fault.mode

    @property
    def misattributed_alone(self) -> bool:
        """The same without a reference, where hardly any fault of the tower can be told and none may be charged on."""
        return self.alone.named is not None and self.alone.named != self.fault.mode

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "fault": self.fault.name,
            "mode": self.fault.mode,
            "strength": self.fault.strength,
            "seed": self.fault.seed,
            "right": self.right,
            **self.diagnosis.to_dict(),
            "named_without_reference": self.alone.named,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all trials.

    Attributes:
        trials: one by one.
    """

    trials: tuple[Trial, ...]

    @property
    def firm(self) -> float:
        """Share of faults of the two higher strengths that were named rightly."""
        return _share(
            [trial.right for trial in self.trials if trial.fault.strength in CLEAR_STRENGTHS and _broken(trial)]
        )

    @property
    def false_alarms(self) -> float:
        """Share of healthy models of which a fault was named."""
        return _share([not trial.right for trial in self.trials if not _broken(trial)])

    @property
    def misattributed(self) -> float:
        """Share of mild faults of which another mode was named."""
        return _share([trial.misattributed for trial in self.trials if trial.fault.strength == 1 and _broken(trial)])

    @property
    def misattributed_alone(self) -> float:
        """Share of all trials in which a wrong mode is named without a reference."""
        return _share([trial.misattributed_alone for trial in self.trials])

    @property
    def passed(self) -> bool:
        """Whether the diagnosis is as good as this package promises."""
        wrong = self.misattributed > 0.10 or self.misattributed_alone > 0.10
        return not (self.firm < 0.95 or self.false_alarms > 0.05 or wrong)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "passed": self.passed,
            "trials": len(self.trials),
            "named_rightly_at_strengths_2_and_3": self.firm,
            "false_alarms": self.false_alarms,
            "mild_faults_misattributed": self.misattributed,
            "misattributed_without_reference": self.misattributed_alone,
            "by_fault": [
                {"fault": name, "mode": mode, "strength": strength, "named": dict(counts)}
                for (mode, name, strength), counts in self.table().items()
            ],
            "each": [trial.to_dict() for trial in self.trials],
        }

    def table(self) -> dict[tuple[str, str, int], Counter[str]]:
        """How often each mode was named, by planted mode, kind and strength."""
        found: dict[tuple[str, str, int], Counter[str]] = {}
        for trial in self.trials:
            key = (trial.fault.mode, trial.fault.name, trial.fault.strength)
            found.setdefault(key, Counter())[trial.diagnosis.named or "none"] += 1
        return found

    def render(self) -> str:
        """For people."""
        rows = [("planted", "fault", "strength", "named")]
        rows += [
            (mode, name, str(strength), ", ".join(f"{named} {count}" for named, count in counts.most_common()))
            for (mode, name, strength), counts in sorted(self.table().items())
        ]
        return "\n".join(
            [
                *text_table(rows),
                f"named rightly at strengths 2 and 3: {self.firm:.1%} (at least 95 % wanted)",
                f"false alarms on healthy models: {self.false_alarms:.1%} (at most 5 %)",
                f"mild faults charged to another mode: {self.misattributed:.1%} (at most 10 %)",
                f"wrong mode named without a reference: {self.misattributed_alone:.1%} (at most 10 %)",
                "passed" if self.passed else "FAILED",
            ]
        )


def faults_for_seed(seed: int) -> list[Fault]:
    """The faults of one seed: each mode at each strength, with its kinds in turn, and none."""
    found = [
        Fault(KINDS[mode][(seed + strength) % len(KINDS[mode])], mode, strength, seed)
        for mode in MODES
        for strength in (1, 2, 3)
    ]
    return [replace(HEALTHY, seed=seed), *found]


class FaultBench:
    """A healthy model and a data set, ready to be broken and asked."""

    def __init__(self, loaded: LoadedModel, data: Dataset, folder: Path) -> None:
        """Ask the healthy model about all documents once.

        Args:
            loaded: the model.
            data: a data set that it classifies well.
            folder: for features; it may grow to some ten megabytes.
        """
        self._loaded, self._data, self._folder = loaded, data, folder
        self._question: Question = ask("closed_set", data.spec.modality, data.spec.classes)
        self._documents = {document.id: document for document in data.documents}
        self._pixels: dict[str, Any] = {}
        self.healthy, self._answers = self._ask(data.documents, HEALTHY, folder / "healthy", {})

    def trial(self, fault: Fault) -> Trial:
        """Break the model, ask it and diagnose it; which documents take part hangs on the fault's seed.

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
                store, answers = self._ask(documents, fault, Path(folder), directions)
                return self._judge(fault, store, list(answers.values()), others)
        return self._judge(fault, store, outcomes, others)

    def _judge(self, fault: Fault, store: FeatureStore, outcomes: Sequence[Outcome], others: Ints) -> Trial:
        found = analyse(store, outcomes, OPTIONS, reference=self._reference(store, others))
        return Trial(fault, found.diagnosis, found.diagnosis_without_reference)

    def _choose(self, seed: int) -> tuple[Ints, Ints]:
        """Rows of the healthy store that take part, and rows of the train fold that do not; whole groups."""
        generator = np.random.default_rng((seed, 2))
        index = self.healthy.index
        fold, group = index["fold"].astype(str).to_numpy(), index["group"].astype(str).to_numpy()
        chosen, others = [], np.empty(0, dtype=np.intp)
        for name in FOLDS:
            rows = np.flatnonzero(fold == name)
            order = {one: place for place, one in enumerate(generator.permutation(np.unique(group[rows])))}
            rows = rows[np.argsort([order[one] for one in group[rows]], kind="stable")]
            chosen.append(rows[: SIZES[name]])
            if name == "train":
                taken = set(group[chosen[0]])
                others = np.array([row for row in rows if group[row] not in taken][: SIZES["train"]], dtype=np.intp)
        if len(others) < SIZES["train"] // 2:
            raise DataError(
                f"{self._data.spec.title}: expected at least {SIZES['train'] * 3 // 2} train documents, half of a "
                f"trial's for the reference, found {len(others)} left over."
            )
        return np.concatenate(chosen), others

    def _reference(self, store: FeatureStore, others: Ints) -> Reference:
        """A probe behind the healthy tower, fitted on documents that take no part, asked about those of the test."""
        names = set(store.index["id"].astype(str))
        mine = [row for row, name in enumerate(self.healthy.index["id"].astype(str)) if name in names]
        folds = self.healthy.index["fold"].astype(str).to_numpy()
        rest = [row for row in mine if folds[row] != "train"]
        part = self.healthy.only(np.array([*others, *rest], dtype=np.intp))
        samples = read_labelled_features(part)
        fitted = fit_probes(part, samples, OPTIONS)
        tower = [place for place, key in enumerate(fitted.sites) if key.part == "vision"]
        place = min(tower, key=lambda one: fitted.validation_loss[one])
        ids = part.index["id"].astype(str).to_numpy()[samples.rows["test"]]
        said = [samples.labels[number] for number in fitted.test[place]]
        return Reference("a probe behind the healthy tower", self._folder, dict(zip(ids, said, strict=True)))

    def _ask(
        self, documents: Sequence[Document], fault: Fault, folder: Path, directions: dict[str, torch.Tensor]
    ) -> tuple[FeatureStore, dict[str, Outcome]]:
        """Features of all documents, and scored answers of those of the test fold, by id."""
        question, spec = self._question, self._data.spec
        labels = list(question.labels)
        subject = RecordedDocument("selfcheck", spec.name, tuple(spec.labels), self._data.fingerprint, "model", "")
        found: dict[str, Outcome] = {}
        planting = plant_fault(
            self._loaded, fault, directions=directions or None, question=question.text, labels=labels
        )
        first: Any = self._data.image(documents[0])
        shown_first = [first] if self._loaded.shows == "images" else first
        example = self._loaded.prepare([question.text], [shown_first])
        with planting, _capturing(self._loaded, subject, folder, example) as capture:
            ids = self._loaded.label_ids(question.text, labels)
            shown_blank = [BLANK] if self._loaded.shows == "images" else BLANK
            (blank,) = self._loaded.generate([question.text], [shown_blank], max_new_tokens=0, labels=labels)
            for fold in FOLDS:
                members = [document for document in documents if document.fold == fold]
                for start in range(0, len(members), BATCH):
                    batch = members[start : start + BATCH]
                    pictures: list[Any] = [self._data.image(document) for document in batch]
                    shown = [[one] for one in pictures] if self._loaded.shows == "images" else pictures
                    inputs = self._loaded.prepare([question.text] * len(batch), shown)
                    answers = self._loaded.generate(
                        [question.text] * len(batch),
                        shown,
                        max_new_tokens=16 if fold == "test" else 0,
                        labels=None if fold == "train" else labels,
                        inputs=inputs,
                        watch=capture.watch,
                    )
                    records = []
                    for document, answer in zip(batch, answers, strict=True):
                        told: dict[str, Any] = {
                            "id": document.id,
                            "document": document.id,
                            "group": document.group,
                            "fold": fold,
                        }
                        scores = None if answer.scores is None else list(answer.scores)
                        told |= {"label": document.labels[0], "answer": answer.text, "scores": scores}
                        shown_scores = None if scores is None else list(blank.scores or ())
                        records.append({**told, "blank": shown_scores, "label_tokens": None})
                        if fold == "test":
                            found[document.id] = _outcome(document, answer.text, question)
                    for document, picture in zip(batch, pictures, strict=True):
                        if document.id not in self._pixels:
                            self._pixels[document.id] = pixels(picture)
                    capture.keep(
                        records,
                        inputs,
                        [self._pixels[document.id] for document in batch],
                        [one[self._loaded.prefix_length :] for one in ids],
                    )
        return FeatureStore(folder), found


@contextmanager
def _capturing(
    loaded: LoadedModel, subject: RecordedDocument, folder: Path, example: Mapping[str, torch.Tensor]
) -> Iterator[FeatureRecorder]:
    capture = FeatureRecorder(loaded, FeatureOptions(random_encoder=False), subject, folder, rank=0, example=example)
    try:
        yield capture
    finally:
        capture.close()


def _outcome(document: Document, text: str, question: Question) -> Outcome:
    read = question.read(text)
    return Outcome(document.id, document.group, document.labels[0], read.label, read.status)


def _test_ids(store: FeatureStore) -> list[str]:
    return list(store.index.loc[store.index["fold"].astype(str) == "test", "id"].astype(str))


def _broken(trial: Trial) -> bool:
    return trial.fault.mode != "none"


def _share(hits: Sequence[bool]) -> float:
    return float(np.mean(hits)) if hits else float("nan")


def selfcheck(
    loaded: LoadedModel, data: Dataset, *, seeds: Sequence[int], say: Callable[[str], None] | None = None
) -> Report:
    """Break a model in all ways at all strengths, and see what the diagnosis says.

    Args:
        loaded: a healthy model.
        data: a data set that it classifies well; images, one class each.
        seeds: one round of trials each.
        say: told of each trial.

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
                    losses = ", ".join(f"{100 * one.loss.value:+.1f}" for one in trial.diagnosis.effects)
                    mark = "" if trial.right else "  <- not named" if not trial.misattributed else "  <- MISATTRIBUTED"
                    say(
                        f"seed {seed}: {fault.name} {fault.strength} ({fault.mode}): named {trial.diagnosis.named}; "
                        f"lost {losses}{mark}"
                    )
        return Report(tuple(trials))
