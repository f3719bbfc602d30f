"""The run of a reference classifier, against which the vision tower is judged."""

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
_BLIND: Final = "majority"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference classifier says.

    Attributes:
        name: such as ``"baseline pixels"``.
        folder: its run folder.
        predicted: class by document of the test fold; ``None`` where an answer was not parsed.
    """

    name: str
    folder: Path
    predicted: Mapping[str, str | None]


def read_reference(folder: Path, dataset_fingerprint: str) -> Reference:
    """Read a run to compare with: of ``medmllm baseline``, or of any model.

    Args:
        folder: the run folder.
        dataset_fingerprint: of the data that are probed.

    Raises:
        DataError: it is no run folder, or no task of it was run on these data.
    """
    run = load_run(folder)
    for task, told in run.manifest["tasks"].items():
        if told.get("dataset_fingerprint") == dataset_fingerprint and task in run.outcomes:
            predicted = {outcome.id: outcome.predicted for outcome in run.outcomes[task]}
            model = run.manifest.get("model")
            name = model.get("name") if isinstance(model, Mapping) else None
            return Reference(str(name or folder.name), folder, predicted)
    raise DataError(
        f"{folder}: expected a run on the same data, found tasks {sorted(run.manifest['tasks'])} on others; run "
        "`medmllm baseline TASK` on the data set that is probed."
    )


def find_reference(run_folder: Path, dataset_fingerprint: str) -> Reference | None:
    """The newest baseline on the same data that stands beside a run folder; ``None`` where there is none.

    Baselines that look at no image are left out.
    """
    for _, folder in sorted(_baselines(run_folder, dataset_fingerprint), reverse=True):
        try:
            return read_reference(folder, dataset_fingerprint)
        # Nobody asked for it by name: an older one, or none, serves better than no probes at all.
        except DataError as error:
            logger.warning("%s is not used as the reference classifier: %s", folder, error)
    return None


def _baselines(run_folder: Path, dataset_fingerprint: str) -> Iterator[tuple[str, Path]]:
    for path in run_folder.absolute().parent.glob("*/manifest.json"):
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            method = (manifest.get("command") or {}).get("baseline")
            tasks = manifest["tasks"].values()
            same = any(told.get("dataset_fingerprint") == dataset_fingerprint for told in tasks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # no run folder, or one that is being written; what was asked for does not hang on it
        if method and method != _BLIND and same and manifest.get("finished"):
            yield str(manifest.get("started")), path.parent
