"""Tasks that explain: answers as any classification, then maps of what moved some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from loguru import logger

from medmllm_plugins.data.dataset import Dataset
from medmllm_plugins.data.documents import Document
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.host import run
from medmllm_plugins.host.envelope import Reply
from medmllm_plugins.host.tasks import ChatClassification, Classification, ClassificationTask, SimpleClassification
from medmllm_plugins.metrics.outcome_files import file_stem
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.questions import scoring
from medmllm_plugins.questions.settings import Purpose, Settings

if TYPE_CHECKING:
    from medmllm_plugins.attribution.explaining import Item

ANSWERED = ("accuracy", "balanced")
"""Metrics of the answers, which any model gives."""
PRINTED = ("deletion_gain", "inside", "trusted")
"""Of the method and locus with the largest gain of deletion: that gain, and the share inside the lesion; and how many
maps' methods and loci fail no check."""


class AttributingTask(ClassificationTask):
    """What a task that explains has for its class."""


class Attributing(Classification):
    """Attributions of one data set. The maps are made while the model is there, see the wrapper of models."""

    PURPOSE: ClassVar[Purpose] = "attribute"
    _gathered: tuple[int, dict[str, Any] | None] | None = None

    def metrics(self) -> tuple[str, ...]:
        """Metrics of the answers, and what the checks say of the maps."""
        return (*ANSWERED, *PRINTED)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests.

        Raises:
            OptionError: few-shot examples are asked for.
        """
        if self.shots:
            raise OptionError(
                f"{self.config.task}: expected no few-shot examples, since an attribution is of one image, found "
                f"--num_fewshot {self.shots}."
            )
        super().build_all_requests(**kwargs)

    def item(self, doc: Mapping[str, Any], shown: Any, reply: Reply) -> Item:
        """A row that was answered, as it is to be explained.

        Args:
            doc: the row.
            shown: as the model was shown it.
            reply: its answer.
        """
        from medmllm_plugins.attribution.explaining import Item

        mask = lesion_of(self.settings, self.data, self._documents[doc["document"]], doc)
        return Item.of(doc, self.rows.question(doc), shown, reply.text, reply.scores, mask)

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        if metric in ANSWERED:
            return super()._aggregation(metric)

        def aggregate(values: list[dict[str, Any]]) -> float | str:
            found = self._gather([Outcome.from_dict(value["outcome"]) for value in values])
            value = None if found is None else _printed(found).get(metric)
            return "N/A" if value is None else value

        return aggregate

    def _write(self, summary: scoring.AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        self._gather(outcomes)  # before the answers' figures, with which the run is finished
        super()._write(summary, outcomes, answers)

    def _gather(self, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
        """Gather what all processes explained; ``None``, and a warning that says why, where nothing was."""
        key = hash(tuple(outcomes))
        if self._gathered is None or self._gathered[0] != key:
            self._gathered = (key, self._read())
        return self._gathered[1]

    def _read(self) -> dict[str, Any] | None:
        from medmllm_plugins.attribution.files import gather, write_table
        from medmllm_plugins.attribution.summary import render

        progress, task = run.current(), str(self.config.task)
        model = getattr(getattr(self, "args", None), "model", None) or "model"
        folder = progress.folder_for(model)
        try:
            kept = progress.keep_attributions(task)
            if kept is None:
                raise DataError(
                    f"{task}: expected attributions, found none. The model is none of this package's, or the answers "
                    "came from the host's cache: run again without --use_cache."
                )
            index = gather(kept, task, model, self.rows.classes)
        # The answers are there and cost hours; they are scored and written whatever became of the maps.
        except DataError as error:
            logger.warning(f"{task}: no attributions: {error}")
            progress.task(task, {"attributions_failed": str(error)})
            return None
        write_table(folder / f"{file_stem(task)}.attributions.csv", index)
        progress.task(task, {"attributions": _printed(index)})
        logger.info(f"{task}: attributions in {kept}\n{render(index)}")
        return index


def _printed(index: Mapping[str, Any]) -> dict[str, float | None]:
    """What the host prints."""
    rows = [row for row in index["summary"] if row["deletion_gain"] is not None and row["locus"] != "prompt"]
    best = max(rows, key=lambda row: row["deletion_gain"]["value"], default=None)
    sound = sum(not row["failed"] for row in index["summary"])
    if best is None:
        return {"deletion_gain": None, "inside": None, "trusted": float(sound)}
    inside = None if best["inside"] is None else best["inside"]["value"]
    return {"deletion_gain": best["deletion_gain"]["value"], "inside": inside, "trusted": float(sound)}


def lesion_of(settings: Settings, data: Dataset, document: Document, row: Mapping[str, Any]) -> Any:
    """The lesion of a document where one is asked about and the set tells, (h, w) bool; else ``None``."""
    asked = settings.dataset.dimensions == 2 and not row["finding"]
    return data.mask(document) if asked else None


class SimpleAttributing(Attributing, SimpleClassification):
    """For the host's simple models, which cannot be looked into."""


class ChatAttributing(Attributing, ChatClassification):
    """For the host's chat models, ours among them."""


AttributingTask.kinds = {"simple": SimpleAttributing, "chat": ChatAttributing}
