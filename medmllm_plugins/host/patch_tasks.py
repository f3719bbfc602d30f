"""Tasks that patch: answers as in any classification, then states of a twin and of other documents put in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import command_line
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.interchange_results import write_interchange_results
from medmllm_plugins.host.intervention_results import write_intervention_results
from medmllm_plugins.host.knockout_results import write_knockout_results
from medmllm_plugins.host.steering_results import write_steering_results
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.host.twin_results import TwinResults
from medmllm_plugins.interventions.patch_effects import MODULES
from medmllm_plugins.interventions.twin_patching import TWIN
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.results.manifest import PatchEntry
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.steering_records import Steering


class PatchingTask(ClassificationTask):
    """What the YAML of a task that patches names under ``class:``."""


@dataclass(frozen=True, slots=True)
class Interventions:
    """The results of a patching task.

    Attributes:
        twin: the result of twin patching; ``None`` without a twin.
        interchange: the result of interchange between documents; ``None`` where it is switched off or failed.
        knockout: the result of cutting attention to the image, likewise.
        steering: the result of pushes along directions of probes, likewise.
        plugins: the results of plugins' interventions, likewise.
    """

    twin: TwinPatching | None = None
    interchange: Interchange | None = None
    knockout: Knockout | None = None
    steering: Steering | None = None
    plugins: InterventionResults | None = None


class Patching(InspectionTask[Interventions]):
    """Interventions on one data set; states are put in while the models are still loaded.

    With a twin, the host prints how much better it answers the patched documents, and how much of that comes with each
    module.
    """

    PURPOSE: ClassVar[Purpose] = "patch"
    ANALYSIS = "interventions"
    NO_EXAMPLES = "states are those of one image"
    PRINTED = ("twin_gain", *(f"gain_{module}" for module in MODULES))

    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> Interventions:
        """Measure the effects of all patches and exchanges.

        Raises:
            DataError: there are none.
        """
        folder = self.run.folder_for(model)
        options = self.content.settings.patching
        assert options is not None, "patching tasks have options"
        steps: dict[str, Callable[[], TwinPatching | Interchange | Knockout | Steering | InterventionResults]] = {}
        if self.name in self.run.patched:
            steps["twin"] = lambda: TwinResults(self.content, self.run).write(folder)
        if options.interchange:
            steps["interchange"] = lambda: write_interchange_results(self.content, self.run, folder)
        if options.knockout:
            steps["knockout"] = lambda: write_knockout_results(self.content, self.run, folder)
        if options.steering:
            steps["steering"] = lambda: write_steering_results(self.content, self.run, folder)
        if options.interventions:
            steps["plugins"] = lambda: write_intervention_results(self.content, self.run, folder)
        results: dict[str, Any] = {}
        reasons: list[str] = []
        for name, step in steps.items():
            try:
                results[name] = step()
            except DataError as error:  # one intervention that failed leaves the others
                reasons.append(str(error))
        if not results:
            raise DataError(" ".join(reasons) or f"{self.name}: expected a twin or another intervention, got none.")
        for reason in reasons:
            logger.warning(f"{self.name}: {reason}")
            command_line.note_failure(f"{self.name}: {reason}")
        result = Interventions(**results)
        sentences = [some.headline for some in results.values()]
        printed = {name: value for name, value in self._printed(result).items() if isinstance(value, float)}
        entry = PatchEntry(failed=" ".join(reasons) or None, headline=" ".join(sentences), printed=printed)
        self.run.task(self.name, patching=entry)
        for sentence in sentences:
            logger.info(f"{self.name}: {sentence}")
        return result

    def _printed(self, result: Interventions) -> Mapping[str, float | str | None]:
        twin = result.twin
        if twin is None:
            return {}
        sign = 1 if twin.better == TWIN else -1
        figures = {"twin_gain": twin.difference, **{f"gain_{share.module}": share.accuracy for share in twin.shares}}
        return {name: number(sign * figure.value) for name, figure in figures.items()}

    def _note_failure(self, reason: str) -> None:
        self.run.task(self.name, patching=PatchEntry(failed=reason))


class SimplePatching(Patching, SimpleClassification):
    """For the host's simple models, whose states cannot be exchanged."""


class ChatPatching(Patching, ChatClassification):
    """For the host's chat models, ours among them."""


PatchingTask.kinds = {"simple": SimplePatching, "chat": ChatPatching}
