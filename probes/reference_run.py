"""Find and read the run of a reference classifier, with which the vision tower is compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.outcome_files import load_run

logger = logging.getLogger(__name__)
_IGNORES_IMAGES: Final = "majority"


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
    for task, entry in run.manifest["tasks"].items():
        if entry.get("dataset_fingerprint") == dataset_fingerprint and task in run.outcomes:
            predicted = {outcome.id: outcome.predicted for outcome in run.outcomes[task]}
            model = run.manifest.get("model")
            name = model.get("name") if isinstance(model, Mapping) else None
            return Reference(str(name or folder.name), folder, predicted)
    raise DataError(
        f"{folder}: expected a run on the same data, got tasks {sorted(run.manifest['tasks'])} on other data. Run "
        "`medmllm baseline TASK` on the probed data set."
    )


def find_reference(run_folder: Path, dataset_fingerprint: str) -> Reference | None:
    """Return the newest baseline on the same data in the same output folder; ``None`` if there is none.

    Baselines that ignore the image are left out.
    """
    for _, folder in sorted(_baselines(run_folder, dataset_fingerprint), reverse=True):
        try:
            return read_reference(folder, dataset_fingerprint)
        # The user did not name it, so an older one, or none, is better than an analysis that fails.
        except DataError as error:
            logger.warning("%s is not used as the reference classifier: %s", folder, error)
    return None


def _baselines(run_folder: Path, dataset_fingerprint: str) -> Iterator[tuple[str, Path]]:
    for path in run_folder.absolute().parent.glob("*/manifest.json"):
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            method = (manifest.get("command") or {}).get("baseline")
            tasks = manifest["tasks"].values()
            same = any(entry.get("dataset_fingerprint") == dataset_fingerprint for entry in tasks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # not a run folder, or one that is being written
        if method and method != _IGNORES_IMAGES and same and manifest.get("finished"):
            yield str(manifest.get("started")), path.parent
