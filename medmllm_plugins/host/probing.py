"""Tasks that probe a model's stages: one pass over all folds gives answers and features, and these the diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from loguru import logger

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.host import run
from medmllm_plugins.host.tasks import ChatClassification, Classification, ClassificationTask, SimpleClassification
from medmllm_plugins.metrics.outcome_files import file_stem
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes import analysis, files
from medmllm_plugins.probes.reference import find_reference
from medmllm_plugins.questions import scoring
from medmllm_plugins.questions.settings import Purpose

ANSWERED = ("accuracy", "balanced")
"""Metrics of the answers, which any model gives."""


class ProbingTask(ClassificationTask):
    """What the YAML of a task that probes names under ``class:``."""


class Probing(Classification):
    """Probes of one data set.

    All folds are asked about. Of the train fold the features alone are needed and of the validation fold the label
    scores beside them, both of which a prefill gives; answers and their metrics are those of the test fold.
    """

    PURPOSE: ClassVar[Purpose] = "probe"
    _probed: tuple[int, analysis.Analysis | None] | None = None

    def metrics(self) -> tuple[str, ...]:
        """Metrics of the answers, the best probe, the Feature Health profile and the four effects."""
        return (*ANSWERED, *analysis.PRINTED)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests.

        Raises:
            OptionError: few-shot examples are asked for.
        """
        if self.shots:
            raise OptionError(
                f"{self.config.task}: expected no few-shot examples, since a probe is of what the model makes of one "
                f"image, found --num_fewshot {self.shots}."
            )
        super().build_all_requests(**kwargs)

    def is_parsed(self, doc_id: int, response: str) -> bool:
        """Whether a class can be read out of the answer to a row; rows of other folds than test have none."""
        return self.dataset["test"][doc_id]["fold"] != "test" or super().is_parsed(doc_id, response)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer of the test fold; of the other folds nothing is scored."""
        return super().process_results(doc, results) if doc["fold"] == "test" else {}

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        if metric in ANSWERED:
            return super()._aggregation(metric)

        def aggregate(values: list[dict[str, Any]]) -> float | str:
            found = self._probe([Outcome.from_dict(value["outcome"]) for value in values])
            value = None if found is None else found.printed().get(metric)
            return "N/A" if value is None else value

        return aggregate

    def _write(self, summary: scoring.AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        self._probe(outcomes)  # before the answers' figures, with which the run is finished
        super()._write(summary, outcomes, answers)

    def _probe(self, outcomes: Sequence[Outcome]) -> analysis.Analysis | None:
        """Fit the probes and write what they tell; ``None``, and a warning that says why, where they cannot be."""
        key = hash(tuple(outcomes))
        if self._probed is None or self._probed[0] != key:
            self._probed = (key, self._analyse(outcomes))
        return self._probed[1]

    def _analyse(self, outcomes: Sequence[Outcome]) -> analysis.Analysis | None:
        progress, task = run.current(), str(self.config.task)
        folder = progress.folder_for(getattr(getattr(self, "args", None), "model", None) or "model")
        try:
            store = progress.keep_features(task)
            if store is None:
                raise DataError(
                    f"{task}: expected features of the model's stages, found none. The model is none of this "
                    "package's, or the answers came from the host's cache: run again without --use_cache."
                )
            with progress.stage(f"probe {task}"):
                compared = find_reference(folder, self.data.fingerprint)
                found = analysis.analyse(store, outcomes, reference=compared)
        # The answers are there and cost hours; they are scored and written whatever the probes meet.
        except DataError as error:
            logger.warning(f"{task}: no probes: {error}")
            progress.task(task, {"probes": {"failed": str(error)}})
            return None
        files.write(folder, file_stem(task), found)
        progress.task(task, {"probes": found.headline_facts()})
        logger.info(f"{task}: {found.headline()}")
        return found


class SimpleProbing(Probing, SimpleClassification):
    """For the host's simple models."""


class ChatProbing(Probing, ChatClassification):
    """For the host's chat models, ours among them."""


ProbingTask.kinds = {"simple": SimpleProbing, "chat": ChatProbing}
