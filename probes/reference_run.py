"""Find and read the run of a reference classifier, with which the vision tower is compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.results.run_folders import finished_baselines

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """The predictions of a reference classifier.

    Attributes:
        name: such as ``"baseline pixels"``.
        folder: its run folder.
        predicted: class by document of the test fold; ``None`` where an answer was not parsed.
    """

    name: str
    folder: Path
    predicted: Mapping[str, str | None]


def read_reference(folder: Path, dataset_fingerprint: str) -> Reference:
    """Read a run to compare with, of ``medmllm baseline`` or of any model.

    Raises:
        DataError: it is not a run folder, or none of its tasks uses the same data.
    """
    run = load_run(folder)
    for task, entry in run.manifest.tasks.items():
        if entry.dataset_fingerprint == dataset_fingerprint and task in run.outcomes:
            predicted = {outcome.id: outcome.predicted for outcome in run.outcomes[task]}
            name = run.manifest.model.name if run.manifest.model else ""
            return Reference(name or folder.name, folder, predicted)
    raise DataError(
        f"{folder}: expected a run on the same data, got tasks {sorted(run.manifest.tasks)} on other data. Run "
        "`medmllm baseline TASK` on the probed data set."
    )


def find_reference(run_folder: Path, dataset_fingerprint: str) -> Reference | None:
    """Return the newest baseline on the same data in the same output folder; ``None`` if there is none.

    Baselines that ignore the image are left out.
    """
    for folder in reversed(finished_baselines([run_folder.absolute().parent], dataset_fingerprint)):
        try:
            return read_reference(folder, dataset_fingerprint)
        # The user did not name it, so an older one, or none, is better than an analysis that fails.
        except DataError as error:
            logger.warning("%s is not used as the reference classifier: %s", folder, error)
    return None
