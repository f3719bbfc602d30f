"""Tasks that patch: answers as in any classification, then states of a twin put in, site by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from loguru import logger

from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.host.twin_results import TwinResults
from medmllm_plugins.interventions.patch_effects import MODULES
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.manifest import PatchEntry
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.runtime.patch_loop import TWIN


class PatchingTask(ClassificationTask):
    """What the YAML of a task that patches names under ``class:``."""


class Patching(InspectionTask[TwinPatching]):
    """Twin patching of one data set; the states are put in while both models are still loaded.

    The host prints how much better the twin answers the patched documents, and how much of that comes with each module.
    """

    PURPOSE: ClassVar[Purpose] = "patch"
    ANALYSIS = "twin patching"
    NO_EXAMPLES = "states are those of one image"
    PRINTED = ("twin_gain", *(f"gain_{module}" for module in MODULES))

    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> TwinPatching:
        """Measure the effects of all patches."""
        result = TwinResults(self.content, self.run).write(self.run.folder_for(model))
        printed = {name: value for name, value in self._printed(result).items() if isinstance(value, float)}
        self.run.task(self.name, patching=PatchEntry(headline=result.headline, printed=printed))
        logger.info(f"{self.name}: {result.headline}")
        return result

    def _printed(self, result: TwinPatching) -> Mapping[str, float | str | None]:
        sign = 1 if result.better == TWIN else -1
        figures = {
            "twin_gain": result.difference,
            **{f"gain_{share.module}": share.accuracy for share in result.shares},
        }
        return {name: number(sign * figure.value) for name, figure in figures.items()}

    def _note_failure(self, reason: str) -> None:
        self.run.task(self.name, patching=PatchEntry(failed=reason))


class SimplePatching(Patching, SimpleClassification):
    """For the host's simple models, whose states cannot be exchanged."""


class ChatPatching(Patching, ChatClassification):
    """For the host's chat models, ours among them."""


PatchingTask.kinds = {"simple": SimplePatching, "chat": ChatPatching}
