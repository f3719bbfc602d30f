"""Try repairs of a model on a task: fit on the train fold, choose on the validation fold, test once.

Every fit and every set of answers is stored when it is done, so that a study that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from loguru import logger

from medmllm_plugins import __version__
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError, MedMLLMError
from medmllm_plugins.interventions.repair_effects import calibration_error, compare_answers, judge
from medmllm_plugins.interventions.repair_training import TrainingOptions, seeded, train_part
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.processes import Processes
from medmllm_plugins.models.repairs.repair_folder import DESCRIPTION, read_repair, write_repair
from medmllm_plugins.models.repairs.repair_part import RepairPart
from medmllm_plugins.models.repairs.repaired_model import repaired
from medmllm_plugins.models.repairs.score_map import ScoreMap
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.prompts.task_content import Row
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.prompts.wording import PARAPHRASES
from medmllm_plugins.results.repair_records import (
    LearningPoint,
    RepairResult,
    RepairStudy,
    RepairTransfer,
)
from medmllm_plugins.runtime.repair_answers import QuestionSet, answer_rows, blank_scores, stored
from medmllm_plugins.runtime.repair_candidates import CANDIDATES, Candidate, RepairOptions, fit_score_map
from medmllm_plugins.utils.atomic_files import write_whole

OTHER_WORDINGS: Final = "other wordings"
SHOTS: Final = (1, 2, 4)
STOPPING: Final = 128
"""Documents of the validation fold on which the loss is measured during training."""
_LOG: Final = "training.json"
_FACTS: Final = "study.json"


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fitted repair.

    Attributes:
        repair: the part or the map; ``None`` for a setting.
        shots: solved examples before each question.
        paraphrase: the wording of the question; ``None`` for the task's own.
        documents: documents that it was fitted on.
        seconds: duration.
        steps: updates.
        stopped: why training ended.
        setting: what was chosen, in words.
    """

    repair: RepairPart | ScoreMap | None
    documents: int
    seconds: float
    steps: int = 0
    stopped: str = ""
    shots: int = 0
    paraphrase: int | None = None
    setting: str = ""


class RepairRunner:
    """Tries repairs of one model on one task."""

    def __init__(
        self,
        loaded: LoadedModel,
        task: str,
        settings: TaskSettings,
        data: Dataset,
        options: RepairOptions,
        folder: Path,
        *,
        model: str = "",
    ) -> None:
        """Take the data of a study.

        Args:
            loaded: the model.
            task: name of a task that asks one question about each document.
            settings: its settings.
            data: its data set, loaded.
            options: what is tried.
            folder: where answers and fitted repairs are kept.
            model: name of the checkpoint, for people.

        Raises:
            DataError: a fold has no documents, or the folder belongs to another study.
        """
        self._loaded, self._task, self._settings = loaded, task, settings
        self._data, self._options, self._folder, self._model = data, options, folder, model
        self._train = QuestionSet(task, settings, data, "train", options.train_limit)
        self._validation = QuestionSet(task, settings, data, "validation", options.validation_limit)
        self._test = QuestionSet(task, settings, data, "test", options.test_limit)
        for questions in (self._train, self._validation, self._test):
            if not questions.rows:
                raise DataError(
                    f"{task}: expected documents in the {questions.fold} fold, got none; its counts are "
                    f"{data.counts()}."
                )
        self._elsewhere = self._transfers()
        self._begin = time.monotonic()
        self._processes = Processes()
        self._claim()

    def _claim(self) -> None:
        """Check that what the folder holds is of this very study."""
        facts = {
            "version": __version__,
            "task": self._train.content.metadata,
            "model": self._loaded.fingerprint,
            "device": self._loaded.device.type,
            "dtype": str(self._loaded.dtype),
            "options": {
                name: value for name, value in asdict(self._options).items() if name not in ("candidates", "batch_size")
            },
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        path = self._folder / _FACTS
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8")).get("digest")
            if earlier != digest:
                raise DataError(
                    f"{self._folder}: expected a folder of this study, got one of another model, task or options. "
                    "Choose another --output, or repeat the earlier command to go on with it."
                )
            return
        self._processes.wait()  # until all have looked
        if self._processes.is_first:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"digest": digest, **facts}, indent=2, default=str) + "\n")
        self._processes.wait()

    @property
    def is_first(self) -> bool:
        """Whether this process, of several that work together, writes the results."""
        return self._processes.is_first

    @property
    def answers_before(self) -> Path:
        """The file with the answers about the test fold without a repair."""
        return self._answers_file("before")

    def run(self) -> RepairStudy:
        """Try all candidates.

        Raises:
            ModelError: the model cannot take a question.
        """
        before = self._answers("before", self._test)
        study = RepairStudy(
            task=self._task,
            model=self._model,
            n=len(before),
            groups=len({outcome.group for outcome in before}),
            accuracy=compare_answers(before, before).before,
            parsed=_parsed(before),
            ece=calibration_error(before, self._test.classes),
        )
        repairs, left_out = [], {}
        for name in self._options.candidates or CANDIDATES:
            try:
                repairs.append(self._try(name))
            except MedMLLMError as error:
                left_out[name] = str(error)
                logger.warning(f"{name}: {error}")
        order = list(CANDIDATES)
        repairs.sort(key=lambda repair: order.index(repair.name))
        return judge(replace(study, repairs=tuple(repairs), left_out=left_out))

    # -- one candidate

    def _try(self, name: str) -> RepairResult:
        candidate = CANDIDATES[name]
        fit = self._fit(name, "full", None, shuffled=False)
        before, after = self._answers("before", self._test), self._answers(f"{name}/test", self._test, fit)
        own = compare_answers(before, after)
        validation = compare_answers(
            self._answers("before-validation", self._validation),
            self._answers(f"{name}/validation", self._validation, fit),
        )
        result = RepairResult(
            name=name,
            title=candidate.title,
            stage=candidate.stage,
            parameters=_parameters(fit.repair),
            seconds=fit.seconds,
            steps=fit.steps,
            documents=fit.documents,
            validation_gain=validation.gain,
            accuracy=own.after,
            gain=own.gain,
            over_guess=own.over_guess,
            fixed=own.fixed,
            broken=own.broken,
            parsed=_parsed(after),
            ece=calibration_error(after, self._test.classes),
            transfers=tuple(self._transfer(name, fit, *item) for item in self._elsewhere.items()),
            setting=fit.setting,
            folder="" if fit.repair is None else f"{name}",
            stopped=fit.stopped,
        )
        if candidate.kind == "setting":
            return result
        if self._options.controls and candidate.learns_labels:
            control = self._answers(f"{name}/shuffled", self._test, self._fit(name, "shuffled", None, shuffled=True))
            result = replace(
                result,
                shuffled_gain=compare_answers(before, control).gain,
                over_shuffled=compare_answers(control, after).gain,
            )
        return replace(result, curve=self._curve(name, candidate, before))

    def _curve(self, name: str, candidate: Candidate, before: Sequence[Outcome]) -> tuple[LearningPoint, ...]:
        source = self._validation if candidate.kind == "recalibration" else self._train
        available = len({row["document"] for row in source.rows})
        points = []
        for count in self._options.curve:
            if count < available:
                fit = self._fit(name, f"from-{count}", count, shuffled=False)
                answers = self._answers(f"{name}/from-{count}", self._test, fit)
                points.append(LearningPoint(documents=count, gain=compare_answers(before, answers).gain))
        return tuple(points)

    def _transfer(self, name: str, fit: _Fit, elsewhere: str, questions: QuestionSet) -> RepairTransfer:
        key = elsewhere.replace(" ", "-").replace(":", "+")
        result = compare_answers(
            self._answers(f"before-{key}", questions), self._answers(f"{name}/{key}", questions, fit)
        )
        return RepairTransfer(
            task=elsewhere, n=len(questions.rows), before=result.before, after=result.after, gain=result.gain
        )

    def _transfers(self) -> dict[str, QuestionSet]:
        """Return what repairs are tested on beside their own question, by name."""
        settings, limit = self._settings, self._options.test_limit
        sets: dict[str, QuestionSet] = {}
        sets[OTHER_WORDINGS] = QuestionSet(
            self._task, settings, self._data, "test", limit, without=int(settings.paraphrase)
        )
        if settings.dataset.kind != "multilabel":
            base = self._task.partition(":")[0].removesuffix(f"_{settings.protocol}")
            for protocol in ("closed_set", "letter", "open"):
                if protocol != settings.protocol:
                    name = base if protocol == "closed_set" else f"{base}_{protocol}"
                    asked = replace(settings, protocol=protocol)
                    sets[name] = QuestionSet(name, asked, self._data, "test", limit)
        for name in self._options.also:
            asked = task_settings(name)
            sets[name] = QuestionSet(name, asked, load_dataset(asked.dataset, on_error=asked.on_error), "test", limit)
        return sets

    # -- fitting

    def _fit(self, name: str, variant: str, count: int | None, *, shuffled: bool) -> _Fit:
        """Fit a candidate, or read the fit that was stored."""
        candidate = CANDIDATES[name]
        if candidate.kind == "setting":
            return self._choose(name)
        folder = self._folder / name if variant == "full" else self._folder / name / "fits" / variant
        if (folder / DESCRIPTION).is_file() and (folder / _LOG).is_file():
            facts = json.loads((folder / _LOG).read_text(encoding="utf-8"))
            return _Fit(read_repair(folder), **facts)
        fitting = (
            partial(self._recalibrate, name) if candidate.kind == "recalibration" else partial(self._train_part, name)
        )
        fit = fitting(count, shuffled=shuffled, title=f"{name} ({variant})")
        assert fit.repair is not None, "settings were chosen above"
        facts = {key: getattr(fit, key) for key in ("documents", "seconds", "steps", "stopped")}
        if self._processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / _LOG, json.dumps(facts, indent=2) + "\n")
            write_repair(folder, fit.repair, self._loaded, name=name, task=self._task, model=self._model)
        self._processes.wait()
        return fit

    def _rows(self, questions: QuestionSet, count: int | None, *, shuffled: bool) -> tuple[Sequence[Row], list[str]]:
        """Return rows and their labels, which are exchanged among groups where ``shuffled``."""
        rows = questions.rows if count is None else questions.first_documents(count, self._options.seed)
        labels = [str(row["label"]) for row in rows]
        if not shuffled:
            return rows, labels
        truth: Ints = np.array([questions.classes.index(label) for label in labels], dtype=np.intp)
        group: Ints = np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
        (permuted,) = permute_labels(truth, group, 1, np.random.default_rng(self._options.seed))
        return rows, [questions.classes[index] for index in permuted]

    def _train_part(self, name: str, count: int | None, *, shuffled: bool, title: str) -> _Fit:
        make = CANDIDATES[name].part
        assert make is not None, "trained candidates have a part"
        options = self._options
        with seeded(options.seed):
            part = make(self._loaded, options)
        rows, labels = self._rows(self._train, count, shuffled=shuffled)
        # Stopping on true labels would choose what shuffled ones happened to get right.
        stopping = self._rows(self._validation, STOPPING, shuffled=shuffled)
        log = train_part(
            self._loaded,
            part,
            self._train.examples(self._loaded, rows, labels),
            self._validation.examples(self._loaded, *stopping),
            TrainingOptions(
                steps=options.steps,
                batch=options.batch,
                rate=options.rate,
                seconds=self._seconds_left(),
                seed=options.seed,
                checkpointing=options.checkpointing,
            ),
            title=title,
            processes=self._processes,
        )
        documents = len({row["document"] for row in rows})
        stopped = log.stopped if log.best_step else f"{log.stopped}; no step lowered the validation loss"
        return _Fit(part, documents, log.seconds, log.steps, stopped)

    def _seconds_left(self) -> float | None:
        """Return the time of one fit: an equal part of what is left for the fits that are to come."""
        if self._options.minutes is None:
            return None
        names = [name for name in self._options.candidates or CANDIDATES if CANDIDATES[name].kind == "trained"]
        fits = 1 + self._options.controls + len(self._options.curve)
        done = sum(1 for _ in self._folder.glob(f"*/{_LOG}")) + sum(1 for _ in self._folder.glob(f"*/fits/*/{_LOG}"))
        left = 60 * self._options.minutes - (time.monotonic() - self._begin)
        return max(1.0, left / max(1, len(names) * fits - done))

    def _recalibrate(self, name: str, count: int | None, *, shuffled: bool, title: str) -> _Fit:
        begin = time.monotonic()
        rows, labels = self._rows(self._validation, count, shuffled=shuffled)
        known = {outcome.id: outcome for outcome in self._answers("before-validation", self._validation)}
        truth: Ints = np.array([self._validation.classes.index(label) for label in labels], dtype=np.intp)
        question = self._validation.content.question(rows[0])
        names = question.labels
        score_map = fit_score_map(
            name,
            [known[row["id"]] for row in rows],
            truth,
            names,
            blank_scores(self._loaded, self._validation.content.question(rows[0]).text, names)
            if name == "blank_image"
            else None,
            self._options.seed,
        )
        return _Fit(score_map, len({row["document"] for row in rows}), time.monotonic() - begin)

    def _choose(self, name: str) -> _Fit:
        """Choose a wording or a number of solved examples by the accuracy on the validation fold."""
        begin = time.monotonic()
        fits: dict[str, _Fit]
        count = len({row["document"] for row in self._validation.rows})
        if name == "wording":
            own = int(self._settings.paraphrase)
            fits = {
                f"paraphrase={number}": _Fit(None, count, 0.0, paraphrase=number)
                for number in range(PARAPHRASES + 1)
                if number != own
            }
        else:
            if self._loaded.shows != "images":
                raise DataError("the model takes one image a question, so no solved examples")
            fits = {f"--num_fewshot {number}": _Fit(None, count, 0.0, shots=number) for number in SHOTS}
        accuracies = {
            setting: np.mean(
                [o.predicted == o.label for o in self._answers(f"{name}/{setting}", self._validation, fit)]
            )
            for setting, fit in fits.items()
        }
        best = max(accuracies, key=lambda setting: accuracies[setting])
        return replace(fits[best], setting=best, seconds=time.monotonic() - begin)

    # -- answers

    def _answers(self, key: str, questions: QuestionSet, fit: _Fit | None = None) -> list[Outcome]:
        """Return the answers to questions with a fit, stored under a key."""
        shots = 0 if fit is None else fit.shots
        if (
            fit is not None
            and fit.paraphrase is not None
            and questions.content.settings.paraphrase == self._settings.paraphrase
        ):
            asked = replace(questions.content.settings, paraphrase=fit.paraphrase)
            worded = QuestionSet(questions.name, asked, questions.content.data, questions.fold)
            kept = {row["document"] for row in questions.rows}
            worded.rows = [row for row in worded.rows if row["document"] in kept]
            questions = worded

        def make() -> tuple[list[Outcome], dict[str, str]]:
            answer = partial(
                answer_rows,
                questions=questions,
                rows=self._processes.share(questions.rows),
                batch_size=self._options.batch_size,
                shots=shots,
                title=key if self._processes.is_first else "",
            )
            if fit is None or fit.repair is None:
                outcomes, texts = answer(self._loaded)
            else:
                with repaired(self._loaded, fit.repair) as model:
                    outcomes, texts = answer(model)
            return self._processes.gather(outcomes), dict(self._processes.gather(list(texts.items())))

        return stored(self._answers_file(key), make, self._processes)

    def _answers_file(self, key: str) -> Path:
        return self._folder / "answers" / f"{key.replace('--', '').replace(' ', '-')}.jsonl"


def _parsed(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.status == "parsed" for outcome in outcomes]))


def _parameters(repair: RepairPart | ScoreMap | None) -> int:
    if repair is None:
        return 0
    if isinstance(repair, ScoreMap):
        return len(repair.labels) * (len(repair.labels) + 1)
    return sum(value.numel() for value in repair.state().values())
