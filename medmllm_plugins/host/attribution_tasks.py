"""Tasks that explain: answers as any classification, then maps of what moved some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from loguru import logger

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import DataError
from medmllm_plugins.host import command_line, evaluation_run
from medmllm_plugins.host.envelope import Reply
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_settings import Purpose, TaskSettings
from medmllm_plugins.results.outcome_files import file_stem

if TYPE_CHECKING:
    from medmllm_plugins.attribution.explainer import Item


class AttributingTask(ClassificationTask):
    """What a task that explains has for its class."""


class Attributing(InspectionTask[dict[str, Any]]):
    """Attributions of one data set. The maps are made while the model is there, see the wrapper of models.

    The host prints the largest gain of deletion, the share inside the lesion of its method and layer, and how many
    methods and layers were put to every check and fail none.
    """

    PURPOSE: ClassVar[Purpose] = "attribute"
    OF = "attributions"
    ALONE = "an attribution is of one image"
    PRINTED = ("deletion_gain", "inside", "trusted")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        if self.settings.dataset.folder:  # masks that are drawn are always sound
            with evaluation_run.current().stage("data"):
                self._check_masks()

    def _check_masks(self) -> None:
        """Read the lesions' masks with everything else that is read before the model is loaded.

        Raises:
            DataError: some cannot be read; of a set with ``on_error=skip`` they are listed as left out instead.
        """
        faults = []
        for row in self.rows:
            try:
                lesion_of(self.settings, self.data, self._documents[row["document"]], row)
            except DataError as error:
                faults.append(str(error))
        if faults and self.settings.on_error == "raise":
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise DataError(
                f"{self.settings.dataset.title}: expected masks of lesions that can be read, found:\n{listed}\n"
                "Mend them, or leave them out with on_error=skip."
            )
        for fault in faults:
            logger.warning(f"{self.config.task}: mask left out: {fault}")
        self.data = replace(self.data, skipped=(*self.data.skipped, *faults))

    def item(self, doc: Mapping[str, Any], shown: Any, reply: Reply) -> Item:
        """A row that was answered, as it is to be explained.

        Args:
            doc: the row.
            shown: as the model was shown it.
            reply: its answer.
        """
        from medmllm_plugins.attribution.explainer import Item

        mask = readable_lesion(self.settings, self.data, self._documents[doc["document"]], doc)
        return Item.of(doc, self.rows.question(doc), shown, reply.text, reply.scores, mask)

    def _look(self, outcomes: Sequence[Outcome], model: str) -> dict[str, Any]:
        """Gather what all processes explained."""
        from medmllm_plugins.attribution.attribution_store import STOPPED, write_index, write_table
        from medmllm_plugins.attribution.checks.check_summary import format_summary

        progress, task = evaluation_run.current(), str(self.config.task)
        folder = progress.folder_for(model)
        kept = progress.keep_attributions(task)
        if kept is None:
            raise DataError(
                f"{task}: expected attributions, found none. The model is none of this package's, or the answers came "
                "from the host's cache: run again without --use_cache."
            )
        index = write_index(kept, task, model, self.rows.classes)
        for warning in index["warnings"]:
            if STOPPED in warning:  # some processes explained theirs, and this one did not
                command_line.note_failure(f"{task}: {warning}")
        write_table(folder / f"{file_stem(task)}.attributions.csv", index)
        progress.task(task, {"attributions": self._printed(index)})
        logger.info(f"{task}: attributions in {kept}\n{format_summary(index)}")
        return index

    def _printed(self, found: dict[str, Any]) -> dict[str, float | None]:
        # Gains of words are none of the image.
        pictured = {(entry["method"], entry["layer"]) for entry in found["entries"] if entry["heat"]}
        rows = [
            row
            for row in found["summary"]
            if row["deletion_gain"] is not None and (row["method"], row["layer"]) in pictured
        ]
        best = max(rows, key=lambda row: row["deletion_gain"]["value"], default=None)
        sound = sum(row["trusted"] for row in found["summary"])
        if best is None:
            return {"deletion_gain": None, "inside": None, "trusted": float(sound)}
        inside = None if best["inside"] is None else best["inside"]["value"]
        return {"deletion_gain": best["deletion_gain"]["value"], "inside": inside, "trusted": float(sound)}

    def _failed(self, why: str) -> dict[str, Any]:
        return {"attributions_failed": why}


def lesion_of(settings: TaskSettings, data: Dataset, document: Document, row: Mapping[str, Any]) -> Any:
    """The lesion of a document where one is asked about and the set tells, (h, w) bool; else ``None``."""
    asked = settings.dataset.dimensions == 2 and not row["finding"]
    return data.mask(document) if asked else None


def readable_lesion(settings: TaskSettings, data: Dataset, document: Document, row: Mapping[str, Any]) -> Any:
    """The same, and ``None`` with a warning where it cannot be read: maps need none."""
    try:
        return lesion_of(settings, data, document, row)
    except DataError as error:  # left out when the set was read, or damaged since
        logger.warning(f"{row['id']}: no mask of the lesion: {error}")
        return None


class SimpleAttributing(Attributing, SimpleClassification):
    """For the host's simple models, which cannot be looked into."""


class ChatAttributing(Attributing, ChatClassification):
    """For the host's chat models, ours among them."""


AttributingTask.kinds = {"simple": SimpleAttributing, "chat": ChatAttributing}
