"""Tasks that explain: answers as in any classification, then maps of what moved some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import command_line
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.attribution_files import write_table
from medmllm_plugins.results.attribution_records import AttributionIndex
from medmllm_plugins.results.file_names import ATTRIBUTION_CHECKS, file_stem
from medmllm_plugins.results.manifest import ExplanationEntry


class AttributingTask(ClassificationTask):
    """What the YAML of a task that explains names under ``class:``."""


class Attributing(InspectionTask[AttributionIndex]):
    """Attributions of one data set; the maps are computed while the model is still loaded.

    The host prints the largest deletion gain, the share inside the lesion of its method and layer, and how many
    combinations of method and layer were put to every check and pass all.
    """

    PURPOSE: ClassVar[Purpose] = "attribute"
    ANALYSIS = "attributions"
    NO_EXAMPLES = "an attribution explains the answer to one image"
    PRINTED = ("deletion_gain", "inside", "trusted")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        if self.content.settings.dataset.folder:  # masks that are drawn are always readable
            with self.run.stage("data"):
                self._check_masks()

    def _check_masks(self) -> None:
        """Read the lesion masks with everything else that is read before the model is loaded."""
        settings, faults = self.content.settings, []
        for row in self.content.row_list:
            try:
                self.content.lesion_mask(row)
            except DataError as error:
                faults.append(str(error))
        if faults and settings.on_error == "raise":
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise DataError(
                f"{settings.dataset.title}: expected readable lesion masks, got:\n{listed}\n"
                "Repair them, or leave them out with on_error=skip."
            )
        for fault in faults:
            logger.warning(f"{self.name}: mask left out: {fault}")
        self.content.note_skipped(faults)

    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> AttributionIndex:
        """Gather the attributions of all processes."""
        from medmllm_plugins.attribution.attribution_store import STOPPED, gather_index
        from medmllm_plugins.attribution.checks.check_summary import format_summary

        folder = self.run.folder_for(model)
        store = self._recorded(self.run.keep_attributions(self.name), "attributions")
        index = gather_index(store, self.name, model, self.content.rows.classes)
        for warning in index.warnings:
            if STOPPED in warning:  # some processes explained their documents, and this one did not
                command_line.note_failure(f"{self.name}: {warning}")
        write_table(folder / f"{file_stem(self.name)}{ATTRIBUTION_CHECKS}", index.summary)
        printed = {name: value for name, value in self._printed(index).items() if value is not None}
        self._note(printed=printed)
        logger.info(f"{self.name}: attributions in {store}\n{format_summary(index)}")
        return index

    def _printed(self, result: AttributionIndex) -> dict[str, float | None]:
        # Deletion gains of words say nothing about the image.
        on_image = {(entry.method, entry.layer) for entry in result.entries if entry.heat}
        rows = [row for row in result.summary if row.deletion_gain and (row.method, row.layer) in on_image]
        best = max(rows, key=lambda row: row.figure("deletion_gain").value, default=None)
        figures = {
            name: None if best is None else number(best.figure(name).value) for name in ("deletion_gain", "inside")
        }
        return {**figures, "trusted": float(sum(row.trusted for row in result.summary))}

    def _note_failure(self, reason: str) -> None:
        self._note(failed=reason)

    def _note(self, **fields: Any) -> None:
        """Set fields of the entry in the manifest, which has the number of documents already."""
        entry = self.run.manifest.tasks[self.name].explanations or ExplanationEntry()
        self.run.task(self.name, explanations=replace(entry, **fields))


class SimpleAttributing(Attributing, SimpleClassification):
    """For the host's simple models, which cannot be explained."""


class ChatAttributing(Attributing, ChatClassification):
    """For the host's chat models, ours among them."""


AttributingTask.kinds = {"simple": SimpleAttributing, "chat": ChatAttributing}
