"""The manifest of a run: what was evaluated, by which command, with which software, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from medmllm_plugins.errors import DataError
from medmllm_plugins.redaction import shareable_manifest
from medmllm_plugins.results.file_names import MANIFEST
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.json_values import mapping
from medmllm_plugins.utils.record import Record, VersionedRecord, check_version, read_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUsage(Record):
    """Time and memory of one stage of a run.

    Attributes:
        name: the stage, such as ``answer med_cls_busi``.
        seconds: wall time; stages of one name are added up.
        process_peak_bytes: peak memory of the process so far, as the operating system reports it.
        device_peak_bytes: peak memory on the GPU during the stage; ``null`` on a CPU.
    """

    name: str
    seconds: float
    process_peak_bytes: int
    device_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Record):
    """An earlier evaluation whose results are in the same folder.

    Attributes:
        tasks: names of its tasks.
        started: when it started, ISO 8601 in UTC.
        finished: when it finished; ``null`` where it did not.
        command: arguments of its command.
        stages: time and memory by stage.
    """

    tasks: tuple[str, ...]
    started: str | None = None
    finished: str | None = None
    command: Mapping[str, Any] | None = None
    stages: tuple[StageUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(VersionedRecord):
    """The manifest of a run: the content of ``manifest.json``, without keys and passwords.

    Its version is that of the whole run folder, the lines of ``TASK.outcomes.jsonl`` included.

    Attributes:
        started: when the run started, ISO 8601 in UTC.
        finished: when it finished; ``null`` where it did not.
        platform: operating system.
        versions: versions of the packages in use; ``null`` for one that is not installed.
        plugins: plugins in use.
        command: arguments of the command; ``null`` where lmms-eval was called from Python.
        seed: the seeds of lmms-eval.
        model: name, checkpoint, fingerprint and options of the model; ``null`` before it is loaded.
        tasks: settings, data set, prompt and metrics of each task, by name.
        stages: time and memory by stage.
        evaluations: earlier evaluations that share the folder.
        answers_of_an_earlier_start: answers that were taken from an earlier, interrupted start of this run.
    """

    FORMAT: ClassVar[str] = "medmllm_manifest"

    started: str | None = None
    finished: str | None = None
    platform: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    plugins: Any = None
    command: Mapping[str, Any] | None = None
    seed: Any = None
    model: Mapping[str, Any] | None = None
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: tuple[StageUsage, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    answers_of_an_earlier_start: int = 0

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read a manifest as far as it can be read; one without a version is read as the current one.

        Raises:
            DataError: it is of a newer version.
        """
        versioned = {cls.FORMAT: cls.VERSION, **mapping(content)}
        check_version(versioned, cls.FORMAT, cls.VERSION)
        return cls(**read_fields(cls, versioned))

    def shareable(self) -> dict[str, Any]:
        """Return the content of the file: :meth:`to_dict` without keys and passwords."""
        return shareable_manifest(self.to_dict())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a run folder, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps(manifest.shareable(), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, text, private=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder whose results are about to be used, or kept.

    Raises:
        DataError: the folder has no manifest, or one that is damaged, of a newer version, or not to be read by you.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.from_dict(content)
        if manifest.tasks.keys() != dict(content["tasks"]).keys():
            raise ValueError("damaged entries of tasks")
        return manifest
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    except PermissionError as error:
        raise DataError(
            f"{path}: expected a file that you may read, got one that its owner alone may, since it holds the "
            f"arguments of a command. Its owner lets you with: chmod a+r {path}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}: expected a run folder with a {MANIFEST}, got {error}. Name the folder that the log of an "
            "evaluation ends with."
        ) from error
