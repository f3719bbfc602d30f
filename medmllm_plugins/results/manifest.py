"""The manifest of a run: what was evaluated, by which command, with which software, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from medmllm_plugins.utils.record import Record, VersionedRecord


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
class Manifest(VersionedRecord):
    """The manifest of a run: the content of ``manifest.json``, without keys and passwords.

    Its version is that of the whole run folder, the lines of ``TASK.outcomes.jsonl`` included.

    Attributes:
        started: when the run started, ISO 8601 in UTC.
        finished: when it finished; ``null`` where it did not.
        platform: operating system.
        versions: versions of the packages in use.
        plugins: plugins in use.
        command: arguments of the command; ``null`` where lmms-eval was called from Python.
        seed: the seeds of lmms-eval.
        model: name, checkpoint, fingerprint and options of the model; ``null`` before it is loaded.
        tasks: settings, data set, prompt and metrics of each task, by name.
        stages: time and memory by stage.
        evaluations: earlier evaluations that share the folder.
    """

    FORMAT: ClassVar[str] = "medmllm_manifest"

    started: str | None = None
    finished: str | None = None
    platform: str = ""
    versions: Mapping[str, str]
    plugins: Any = None
    command: Mapping[str, Any] | None = None
    seed: Any = None
    model: Mapping[str, Any] | None = None
    tasks: Mapping[str, Mapping[str, Any]]
    stages: tuple[StageUsage, ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
