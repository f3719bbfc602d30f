"""Tasks that probe a model's stages: one pass over all folds gives answers and features, and these the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import evaluation_run
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes import analysis
from medmllm_plugins.probes.reference_run import find_reference
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.outcome_files import file_stem
from medmllm_plugins.results.probe_files import write_probes
from medmllm_plugins.results.probe_records import ProbeAnalysis


class ProbingTask(ClassificationTask):
    """What the YAML of a task that probes names under ``class:``."""


class Probing(InspectionTask[ProbeAnalysis]):
    """Probes of one data set.

    All folds are asked about. Of the train fold the features alone are needed and of the validation fold the label
    scores beside them, both of which a prefill gives; answers and their metrics are those of the test fold.
    """

    PURPOSE: ClassVar[Purpose] = "probe"
    OF = "probes"
    ALONE = "a probe is of what the model makes of one image"
    PRINTED = analysis.PRINTED
    LOWER_IS_BETTER = frozenset(analysis.LOST)

    def is_parsed(self, doc_id: int, response: str) -> bool:
        """Whether a class can be read out of the answer to a row; rows of other folds than test have none."""
        return self.dataset["test"][doc_id]["fold"] != "test" or super().is_parsed(doc_id, response)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer of the test fold; of the other folds nothing is scored."""
        return super().process_results(doc, results) if doc["fold"] == "test" else {}

    def _look(self, outcomes: Sequence[Outcome], model: str) -> ProbeAnalysis:
        """Fit the probes."""
        progress, task = evaluation_run.current(), str(self.config.task)
        folder = progress.folder_for(model)
        store = progress.keep_features(task)
        if store is None:
            raise DataError(
                f"{task}: expected features of the model's stages, found none. The model is none of this package's, or "
                "the answers came from the host's cache: run again without --use_cache."
            )
        with progress.stage(f"probe {task}"):
            compared = find_reference(folder, self.data.fingerprint)
            found = analysis.analyse(store, outcomes, reference=compared)
        write_probes(folder, file_stem(task), found)
        progress.task(task, {"probes": found.manifest_entry()})
        logger.info(f"{task}: {found.headline}")
        return found

    def _printed(self, found: ProbeAnalysis) -> Mapping[str, float | str | None]:
        return found.printed_metrics()

    def _failed(self, why: str) -> dict[str, Any]:
        return {"probes": {"failed": why}}


class SimpleProbing(Probing, SimpleClassification):
    """For the host's simple models."""


class ChatProbing(Probing, ChatClassification):
    """For the host's chat models, ours among them."""


ProbingTask.kinds = {"simple": SimpleProbing, "chat": ChatProbing}
