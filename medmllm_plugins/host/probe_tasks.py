"""Tasks that probe a model's stages: one pass over all folds gives answers and features, and these the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import command_line
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.host.twin_results import TwinResults
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes import analysis
from medmllm_plugins.probes.anchors import SWITCHED_OFF, score_anchors
from medmllm_plugins.probes.masked_border import masked_answers
from medmllm_plugins.probes.reference_run import find_reference
from medmllm_plugins.prompts.task_content import Row
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.anchor_files import write_anchors
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.manifest import PatchEntry, ProbeEntry
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_files import write_probes
from medmllm_plugins.results.probe_records import LOST, PRINTED_METRICS, ProbeAnalysis


class ProbingTask(ClassificationTask):
    """What the YAML of a task that probes names under ``class:``."""


class Probing(InspectionTask[ProbeAnalysis]):
    """Probes of one data set.

    All folds are asked about. The train fold needs features alone and the validation fold label scores as well, both of
    which a prefill gives; answers and their metrics are those of the test fold.
    """

    PURPOSE: ClassVar[Purpose] = "probe"
    ANALYSIS = "probes"
    NO_EXAMPLES = "a probe is fitted on the features of one image"
    PRINTED = PRINTED_METRICS
    LOWER_IS_BETTER = frozenset(LOST)

    def process_results(self, doc: Row, results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer of the test fold; the other folds are not scored."""
        return super().process_results(doc, results) if doc["fold"] == "test" else {}

    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> ProbeAnalysis:
        """Fit the probes."""
        folder = self.run.folder_for(model)
        anchors, patching = self._anchors(folder), self._patching(folder)
        store = FeatureStore(self._recorded(self.run.keep_features(self.name), "features of the model's stages"))
        with self.run.stage(f"probe {self.name}"):
            reference = find_reference(folder, self.content.data.fingerprint)
            result = analysis.analyse(
                store,
                outcomes,
                reference=reference,
                anchors=anchors,
                masked=masked_answers(store, outcomes, self._read),
                patching=patching,
            )
        write_probes(folder, file_stem(self.name), result)
        self.run.task(self.name, probes=result.manifest_entry())
        logger.info(f"{self.name}: {result.headline}")
        return result

    def _read(self, document: str, answer: str) -> str | None:
        """Read the class out of the answer to a document's question."""
        return self.content.read_answer(self._row_of_document[document], answer).label

    @cached_property
    def _row_of_document(self) -> dict[str, Row]:
        return {row["document"]: row for row in self.content.row_list}

    def _anchors(self, folder: Path) -> Anchors:
        """Score the anchors and write their answers into the run folder."""
        if not self.content.settings.anchors:
            return Anchors(not_run=dict.fromkeys(("text", "positive"), SWITCHED_OFF))
        answers, not_run = self.run.anchor_answers(self.name)
        if not answers:
            return Anchors(not_run={**dict.fromkeys(("text", "positive"), "the model was not asked"), **not_run})
        items = self.content.anchors()
        write_anchors(folder, file_stem(self.name), items, answers)
        return score_anchors(items, answers, not_run)

    def _patching(self, folder: Path) -> TwinPatching | None:
        """Return the result of twin patching where a twin was named; a failure costs the diagnosis nothing else."""
        if self.name not in self.run.patched:
            return None
        try:
            result = TwinResults(self.content, self.run).write(folder)
        except DataError as error:
            logger.warning(f"{self.name}: no twin patching: {error}")
            command_line.note_failure(f"{self.name}: no twin patching: {error}")
            self.run.task(self.name, patching=PatchEntry(failed=str(error)))
            return None
        self.run.task(self.name, patching=PatchEntry(headline=result.headline))
        return result

    def _printed(self, result: ProbeAnalysis) -> Mapping[str, float | str | None]:
        return result.printed_metrics()

    def _note_failure(self, reason: str) -> None:
        self.run.task(self.name, probes=ProbeEntry(failed=reason))


class SimpleProbing(Probing, SimpleClassification):
    """For the host's simple models."""


class ChatProbing(Probing, ChatClassification):
    """For the host's chat models, ours among them."""


ProbingTask.kinds = {"simple": SimpleProbing, "chat": ChatProbing}
