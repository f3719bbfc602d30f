"""What tasks that look into a model have in common: answers as any classification, and what the look tells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from loguru import logger

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.host import command_line, evaluation_run
from medmllm_plugins.host.tasks import Classification
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.metric_files import AnySummary

ANSWERED = ("accuracy", "balanced")
"""Metrics of the answers, which any model gives."""
Found = TypeVar("Found")
"""What a look tells."""


class InspectionTask(Classification, Generic[Found]):
    """Answers of one data set, and a look into the model that gave them.

    Attributes:
        OF: what the look is of, in the plural.
        ALONE: why it cannot be had with few-shot examples.
        PRINTED: names of the figures that the host prints of it.
    """

    OF: ClassVar[str]
    ALONE: ClassVar[str]
    PRINTED: ClassVar[tuple[str, ...]]
    _seen: tuple[int, Found | None] | None = None

    @abstractmethod
    def _look(self, outcomes: Sequence[Outcome], model: str) -> Found:
        """Look, write what it tells beside the answers of ``model``, and name it in the log.

        Raises:
            DataError: there is nothing to look at.
        """

    @abstractmethod
    def _printed(self, found: Found) -> Mapping[str, float | str | None]:
        """The figures that the host prints, by name."""

    @abstractmethod
    def _failed(self, why: str) -> dict[str, Any]:
        """What the manifest tells of a look that failed."""

    def metrics(self) -> tuple[str, ...]:
        """Metrics of the answers, and what the look tells."""
        return (*ANSWERED, *self.PRINTED)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests.

        Raises:
            OptionError: few-shot examples are asked for.
        """
        if self.shots:
            raise OptionError(
                f"{self.config.task}: expected no few-shot examples, since {self.ALONE}, found --num_fewshot "
                f"{self.shots}."
            )
        super().build_all_requests(**kwargs)

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        if metric in ANSWERED:
            return super()._aggregation(metric)

        def aggregate(values: list[dict[str, Any]]) -> float | str:
            found = self._once([Outcome.from_dict(value["outcome"]) for value in values])
            value = None if found is None else self._printed(found).get(metric)
            return "N/A" if value is None else value

        return aggregate

    def _write(self, summary: AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        self._once(outcomes)  # before the answers' figures, with which the run is finished
        super()._write(summary, outcomes, answers)

    def _once(self, outcomes: Sequence[Outcome]) -> Found | None:
        """Look, once for the same outcomes; ``None``, and a warning that says why, where it cannot be done."""
        key = hash(tuple(outcomes))
        if self._seen is None or self._seen[0] != key:
            model = getattr(getattr(self, "args", None), "model", None) or "model"
            try:
                self._seen = (key, self._look(outcomes, model))
            # The answers are there and cost hours; they are scored and written whatever the look meets.
            except DataError as error:
                logger.warning(f"{self.config.task}: no {self.OF}: {error}")
                command_line.note_failure(f"{self.config.task}: no {self.OF}: {error}")
                evaluation_run.current().task(str(self.config.task), self._failed(str(error)))
                self._seen = (key, None)
        return self._seen[1]
