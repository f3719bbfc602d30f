"""Validate the diagnosis on models whose faults are known.

A healthy model is broken on purpose (:mod:`medmllm_plugins.probes.validation.planted_faults`) and evaluated on
labelled documents. Its features and answers are diagnosed by the same code as in any evaluation. The
reference classifier is a probe on the healthy tower, fitted on other documents.
"""

from __future__ import annotations

import copy
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

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
from medmllm_plugins.probes.anchors import run_anchors
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.probes.validation.fault_kinds import (
    DESTROYING,
    HEALTHY,
    HEALTHY_KIND,
    PAIRS,
    STRENGTHS,
    Fault,
    FaultGroup,
    Strength,
    names_of,
)
from medmllm_plugins.probes.validation.planted_faults import WORD_FAULTS, class_directions, plant_faults
from medmllm_plugins.probes.validation.selfcheck_report import Judgement, Report, Trial, group_of, judge, judge_faults
from medmllm_plugins.probes.validation.simulated_stages import Answers, SimulatedStages, Variant, diagnose_simulated
from medmllm_plugins.probes.validation.tagged_images import tagged
from medmllm_plugins.prompts.feature_options import MEAN, FeatureOptions
from medmllm_plugins.prompts.protocols import Question, ask
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.feature_store import FeatureStore, Header
from medmllm_plugins.results.probe_records import Interface, Mode, ProbeAnalysis

SIZES: Final[dict[Fold, int]] = {"train": 400, "validation": 160, "test": 320}
"""Number of documents in a trial, by fold."""
BATCH: Final = 40
OPTIONS: Final = Options(layers=("connector",), permutations=1, controls=1, refits=10)
"""The verdicts use only the ends of the stages."""
CLEAR_STRENGTHS: Final[tuple[Strength, ...]] = (2, 3)
"""Strengths at which the diagnosis must name a fault that destroys the class."""
OTHERS: Final[Mapping[FaultGroup, int]] = {"form": 4, "held-out form": 2, "preprocessing": 1, "harmless": 1}
"""Number of trials with faults of further groups for each seed."""
WIDTHS: Final = ((96, 1024, 2048), (96, 2048, 1024), (1024, 1024, 96), (768, 96, 2048), (96, 96, 4096))
"""Widths of the simulated stages."""
BLANK: Final = Image.new("RGB", (64, 64), (128, 128, 128))


@dataclass(frozen=True, slots=True)
class TaggedImages:
    """Images with a corner tag that tells the class, see :mod:`medmllm_plugins.probes.validation.tagged_images`."""

    folds: tuple[Fold, ...]
    seed: int


Planned: TypeAlias = tuple[Fault, ...] | SimulatedStages | TaggedImages
"""What a trial is about: faults of a model, stages that lose nothing, or images with a shortcut."""


def trials_for_seed(seed: int) -> list[Planned]:
    """Return the trials of one seed.

    They are the healthy model, a mild fault of one failure mode, a clear and a heavy one of each, some kinds of every
    other group, images with a shortcut, and simulated stages. Kinds and strengths come in turn.
    """
    planned: list[Planned] = [(replace(HEALTHY, seed=seed),)]
    for number, kinds in enumerate(DESTROYING.values()):
        strengths = STRENGTHS if number == seed % len(DESTROYING) else CLEAR_STRENGTHS
        planned += [(Fault(kinds[(seed + strength) % len(kinds)], strength, seed),) for strength in strengths]
    for group, count in OTHERS.items():
        names = names_of(group)
        chosen = [names[(count * seed + number) % len(names)] for number in range(count)]
        planned += [(Fault(name, CLEAR_STRENGTHS[(seed // 2 + n) % 2], seed),) for n, name in enumerate(chosen)]
    planned.append(tuple(Fault(name, CLEAR_STRENGTHS[seed // 10 % 2], seed) for name in PAIRS[seed % len(PAIRS)]))
    tagged_folds: tuple[Fold, ...] = FOLDS if seed % 2 == 0 else ("train",)
    return [*planned, *lossless_stages(seed), TaggedImages(tagged_folds, seed)]


def lossless_stages(seed: int) -> tuple[SimulatedStages, ...]:
    """Return simulated stages of other widths, numbers of classes and documents for each seed."""
    widths, classes = WIDTHS[seed % len(WIDTHS)], (4, 2, 3, 7)[seed // 2 % 4]
    sizes: dict[Fold, int] = {"train": (400, 200, 800)[seed % 3], "validation": 160, "test": 320}
    common = SimulatedStages(widths=widths, classes=classes, sizes=sizes, seed=seed)
    variants: tuple[tuple[Variant, Answers], ...] = (
        ("isometry", "optimal"),
        ("noise", "optimal"),
        ("isometry", "guessed"),
    )
    return tuple(replace(common, variant=variant, answers=answers) for variant, answers in variants)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What the evaluation of a model leaves behind."""

    store: FeatureStore
    outcomes: Sequence[Outcome]
    anchors: Anchors

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(np.mean([outcome.predicted == outcome.label for outcome in self.outcomes]))

    def analyse(self, reference: Reference) -> ProbeAnalysis:
        """Analyse it like any run."""
        return analyse(self.store, self.outcomes, OPTIONS, reference=reference, anchors=self.anchors)


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
        self._image: Callable[[str], Any] = functools.lru_cache(maxsize=2 * sum(SIZES.values()))(self._draw)
        self._controls: dict[str, Any] = {}
        self._part = functools.lru_cache(maxsize=1)(self._healthy_part)
        self.healthy = self._evaluate(data.documents, (HEALTHY,), folder / "healthy", {})

    def trial(self, planned: Planned) -> Trial:
        """Break the model, evaluate and diagnose it, on documents chosen by the seed of the first fault.

        Raises:
            DataError: the data set is too small.
        """
        began = time.perf_counter()
        if isinstance(planned, SimulatedStages):
            return simulated_trial(planned)
        if isinstance(planned, TaggedImages):
            return self._tagged_trial(planned)
        healthy, reference = self._part(planned[0].seed)
        run = healthy
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            if all(fault.name in WORD_FAULTS for fault in planned):
                run = self._evaluate_words(planned, healthy.store)
            elif planned[0].name != HEALTHY_KIND:
                documents = [self._documents[str(name)] for name in healthy.store.index["document"]]
                run = self._evaluate(documents, planned, Path(folder), _directions(healthy.store))
            analysis = run.analyse(reference)
        return Trial(
            name=" + ".join(fault.name for fault in planned),
            group=group_of(planned),
            seed=planned[0].seed,
            faults=planned,
            judgement=judge_faults(planned, analysis.diagnosis),
            judgement_without_reference=judge_faults(planned, analysis.diagnosis_without_reference),
            analysis=analysis,
            cost=healthy.accuracy - run.accuracy,
            seconds=time.perf_counter() - began,
        )

    def _tagged_trial(self, planned: TaggedImages) -> Trial:
        """Analyse the healthy model on images with a shortcut, of which the analysis must warn."""
        began = time.perf_counter()
        healthy, reference = self._part(planned.seed)
        bench = copy.copy(self)
        bench._data, bench._controls = tagged(self._data, planned.folds, seed=planned.seed), {}
        bench._image = bench._draw
        documents = [self._documents[str(name)] for name in healthy.store.index["document"]]
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            analysis = bench._evaluate(documents, (HEALTHY,), Path(folder), {}).analyse(reference)
        warned = analysis.shortcuts is not None and bool(analysis.shortcuts.warnings)
        judgement: Judgement = "correct" if warned else "wrong"
        return Trial(
            name=f"tag in {' and '.join(planned.folds)}",
            group="tagged",
            seed=planned.seed,
            judgement=judgement,
            judgement_without_reference=judgement,
            analysis=analysis,
            seconds=time.perf_counter() - began,
        )

    def _healthy_part(self, seed: int) -> tuple[_Run, Reference]:
        """Return the healthy model's results on a seed's documents, and the reference classifier's answers."""
        chosen, others = self._choose(seed)
        store = self.healthy.store.only(chosen)
        test = set(store.index.loc[store.index["fold"].astype(str) == "test", "id"].astype(str))
        outcomes = [outcome for outcome in self.healthy.outcomes if outcome.id in test]
        anchors = self._anchors([self._documents[outcome.id] for outcome in outcomes])
        return _Run(store, outcomes, anchors), self._reference(store, others)

    def _choose(self, seed: int) -> tuple[Ints, Ints]:
        """Choose rows of the healthy store for the trial, and other rows of its train fold; whole groups."""
        generator = np.random.default_rng((seed, 2))
        index = self.healthy.store.index
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
        trial_rows = [row for row, name in enumerate(self.healthy.store.index["id"].astype(str)) if name in names]
        folds = self.healthy.store.index["fold"].astype(str).to_numpy()
        held_out = [row for row in trial_rows if folds[row] != "train"]
        part = self.healthy.store.only(np.array([*others, *held_out], dtype=np.intp))
        samples = read_labelled_features(part)
        fitted = fit_probes(part, samples, OPTIONS)
        tower = [index for index, site in enumerate(fitted.sites) if site.part == "vision"]
        best = min(tower, key=lambda index: fitted.validation_loss[index])
        ids = part.index["id"].astype(str).to_numpy()[samples.rows["test"]]
        predicted = [samples.labels[number] for number in fitted.test[best]]
        return Reference("a probe on the healthy tower", self._folder, dict(zip(ids, predicted, strict=True)))

    def _evaluate_words(self, faults: Sequence[Fault], healthy: FeatureStore) -> _Run:
        """Evaluate faults of the words: they change label scores and answers, and no features."""
        store = copy.copy(healthy)
        store.index = healthy.index.copy()
        row_of = {str(name): row for row, name in zip(store.index.index, store.index["id"], strict=True)}
        documents = [self._documents[str(name)] for name in store.index["document"]]
        outcomes: list[Outcome] = []
        with self._planted(faults, {}):
            blank = self._blank()
            for fold, batch in _batches([document for document in documents if document.fold != "train"]):
                for document, answer in zip(batch, self._answer(fold, batch, self._prepare(batch)), strict=True):
                    record = _feature_record(document, fold, answer, blank)
                    for column in ("answer", "scores", "blank"):
                        store.index.at[row_of[document.id], column] = record[column]
                    if fold == "test":
                        outcomes.append(_outcome(document, answer.text, self._question))
            return _Run(store, outcomes, self._anchors(documents))

    def _evaluate(
        self,
        documents: Sequence[Document],
        faults: Sequence[Fault],
        folder: Path,
        directions: Mapping[str, torch.Tensor],
    ) -> _Run:
        """Record features of all documents, and score the answers to the test fold and to the anchors."""
        question, spec, loaded = self._question, self._data.spec, self._loaded
        header = Header("selfcheck", spec.name, tuple(spec.labels), self._data.fingerprint, "model", "", layers=())
        outcomes: list[Outcome] = []
        with self._planted(faults, directions):
            example = loaded.prepare([question.text], self._shown(documents[:1]))
            with _recording(loaded, header, folder, example) as recorder:
                label_ids = [ids[loaded.prefix_length :] for ids in loaded.label_ids(question.text, question.labels)]
                blank = self._blank()
                for fold, batch in _batches(documents):
                    inputs = self._prepare(batch)
                    answers = self._answer(fold, batch, inputs, recorder)
                    pairs = list(zip(batch, answers, strict=True))
                    if fold == "test":
                        outcomes += [_outcome(document, answer.text, question) for document, answer in pairs]
                    for document in batch:
                        if document.id not in self._controls:
                            self._controls[document.id] = control_features(self._image(document.id))
                    recorder.keep(
                        [_feature_record(document, fold, answer, blank) for document, answer in pairs],
                        inputs,
                        [self._controls[document.id] for document in batch],
                        label_ids,
                    )
            return _Run(FeatureStore(folder), outcomes, self._anchors(documents))

    def _anchors(self, documents: Sequence[Document]) -> Anchors:
        """Ask the model, as it is at the moment, the anchors about documents of the test fold."""
        test = [document for document in documents if document.fold == "test"]
        return run_anchors(self._loaded, self._data, self._question, test, batch_size=BATCH)

    def _planted(self, faults: Sequence[Fault], directions: Mapping[str, torch.Tensor]) -> AbstractContextManager[None]:
        question = self._question
        return plant_faults(
            self._loaded, *faults, directions=directions, question=question.text, labels=list(question.labels)
        )

    def _blank(self) -> Generation:
        """Score the labels for an image that holds nothing."""
        labels, shown = list(self._question.labels), [self._as_input(BLANK)]
        return self._loaded.generate([self._question.text], shown, max_new_tokens=0, labels=labels)[0]

    def _prepare(self, batch: Sequence[Document]) -> dict[str, torch.Tensor]:
        return self._loaded.prepare([self._question.text] * len(batch), self._shown(batch))

    def _shown(self, batch: Sequence[Document]) -> list[Any]:
        return [self._as_input(self._image(document.id)) for document in batch]

    def _answer(
        self,
        fold: Fold,
        batch: Sequence[Document],
        inputs: dict[str, torch.Tensor],
        recorder: FeatureRecorder | None = None,
    ) -> list[Generation]:
        """Answer the question about documents of one fold; the labels of train documents are not scored."""
        return self._loaded.generate(
            [self._question.text] * len(batch),
            self._shown(batch),
            max_new_tokens=16 if fold == "test" else 0,
            labels=None if fold == "train" else list(self._question.labels),
            inputs=inputs,
            watch=None if recorder is None else recorder.watch,
        )

    def _draw(self, name: str) -> Any:
        return self._data.image(self._documents[name])

    def _as_input(self, image: Any) -> Any:
        return [image] if self._loaded.shows == "images" else image


def simulated_trial(stages: SimulatedStages) -> Trial:
    """Diagnose simulated stages that lose nothing.

    Where the answers are as good as can be, nothing may be named. Where they are guessed, the class is lost in the last
    step: it may be charged to the mapping, or be called unread after the LLM.
    """
    began = time.perf_counter()
    analysis = diagnose_simulated(stages, OPTIONS)
    modes: tuple[Mode, ...] = () if stages.answers == "optimal" else ("mapping",)
    interfaces: tuple[Interface, ...] = () if stages.answers == "optimal" else ("llm -> answer",)
    widths = "-".join(map(str, stages.widths))
    return Trial(
        name=f"{stages.variant}, {widths} wide, answers {stages.answers}",
        group="lossless",
        seed=stages.seed,
        judgement=judge(modes, interfaces, analysis.diagnosis),
        judgement_without_reference=judge(modes, interfaces, analysis.diagnosis_without_reference),
        analysis=analysis,
        seconds=time.perf_counter() - began,
    )


def _directions(store: FeatureStore) -> dict[str, torch.Tensor]:
    """Return the directions that separate the classes in the healthy connector's output."""
    samples = read_labelled_features(store)
    labels = [samples.labels[number] for number in samples.of("train")]
    features = torch.from_numpy(store.features("connector", MEAN, samples.rows["train"])).double()
    return {"connector": class_directions(features, labels)}


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


def selfcheck(
    loaded: LoadedModel,
    data: Dataset,
    *,
    seeds: Sequence[int],
    say: Callable[[str], None] | None = None,
    output: Path | None = None,
) -> Report:
    """Diagnose healthy, edited, broken and simulated models.

    Args:
        loaded: a healthy model.
        data: a data set that it classifies well; images, one class each.
        seeds: seeds; one round of trials each.
        say: receives a line about each trial.
        output: a new file for one JSON object a trial, a line each.

    Raises:
        DataError: the data set is too small.
    """
    with tempfile.TemporaryDirectory(prefix="medmllm-selfcheck-") as folder, ExitStack() as stack:
        file = None if output is None else stack.enter_context(output.open("x", encoding="utf-8"))
        bench = FaultBench(loaded, data, Path(folder))
        trials = []
        for seed in seeds:
            for planned in trials_for_seed(seed):
                trial = bench.trial(planned)
                trials.append(trial)
                if file is not None:
                    print(json.dumps(trial.to_dict(), ensure_ascii=False), file=file, flush=True)
                if say is not None:
                    say(trial.summary())
        return Report(tuple(trials))
