"""The base of tasks that inspect a model while it answers: classification, and an analysis of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from loguru import logger

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.host import command_line
from medmllm_plugins.host.tasks import Classification
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.readability import AnySummary

ANSWER_METRICS = ("accuracy", "balanced")
"""Metrics of the answers, which any model gives."""
Result = TypeVar("Result")
"""The result of the analysis."""


class InspectionTask(Classification, Generic[Result]):
    """Classification of one data set, with an analysis of the model's features or gradients."""

    ANALYSIS: ClassVar[str]
    """What the analysis gives, in the plural."""
    NO_EXAMPLES: ClassVar[str]
    PRINTED: ClassVar[tuple[str, ...]]
    """Names of the numbers that the host prints of it."""
    _analysed: tuple[int, Result | None] | None = None

    @abstractmethod
    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> Result:
        """Analyse, write the result beside the answers of ``model``, and log it."""

    @abstractmethod
    def _printed(self, result: Result) -> Mapping[str, float | str | None]:
        """Return the numbers that the host prints, by name."""

    @abstractmethod
    def _note_failure(self, reason: str) -> None:
        """Say in the manifest that the analysis failed."""

    def _recorded(self, store: Path | None, noun: str) -> Path:
        """Return the folder that the model wrote to, or raise a DataError if it wrote to none."""
        if store is None:
            raise DataError(
                f"{self.name}: expected {noun}, got none. Use a model of this package; if the answers came from the "
                "host's cache, run again without --use_cache."
            )
        return store

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics of the answers and of the analysis."""
        return (*ANSWER_METRICS, *self.PRINTED)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests.

        Raises:
            OptionError: few-shot examples are asked for.
        """
        if self._example_count:
            raise OptionError(
                f"{self.name}: expected no few-shot examples, since {self.NO_EXAMPLES}, got --num_fewshot "
                f"{self._example_count}. Leave it out."
            )
        super().build_all_requests(**kwargs)

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        if metric in ANSWER_METRICS:
            return super()._aggregation(metric)

        def aggregate(values: list[dict[str, Any]]) -> float | str:
            result = self._analyse_once([Outcome.from_dict(value["outcome"]) for value in values])
            value = None if result is None else self._printed(result).get(metric)
            return "N/A" if value is None else value

        return aggregate

    def _write(self, summary: AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        self._analyse_once(outcomes)  # before the metrics of the answers, with which the run is finished
        super()._write(summary, outcomes, answers)

    def _analyse_once(self, outcomes: Sequence[Outcome]) -> Result | None:
        """Analyse, once for the same outcomes; ``None`` with a warning that says why if it fails."""
        key = hash(tuple(outcomes))
        if self._analysed is None or self._analysed[0] != key:
            try:
                self._analysed = (key, self._analyse(outcomes, self._model_name))
            # The answers cost hours; they are scored and written whatever the analysis meets.
            except DataError as error:
                logger.warning(f"{self.name}: no {self.ANALYSIS}: {error}")
                command_line.note_failure(f"{self.name}: no {self.ANALYSIS}: {error}")
                self._note_failure(str(error))
                self._analysed = (key, None)
        return self._analysed[1]
