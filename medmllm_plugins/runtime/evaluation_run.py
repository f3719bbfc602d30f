"""The run folder: what one evaluation leaves on disk beside the host's own files."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import answering_name
from medmllm_plugins.results.file_names import ATTRIBUTIONS, FEATURES, FOLDS, MANIFEST, RUNS, file_stem
from medmllm_plugins.results.manifest import (
    Evaluation,
    Manifest,
    ModelEntry,
    StageUsage,
    TaskEntry,
    write_manifest,
)
from medmllm_plugins.results.seal import Entry, read_seal, update_seal, write_seal
from medmllm_plugins.runtime.journal import Journal, Reply, hash_facts
from medmllm_plugins.runtime.run_claim import claim_folder
from medmllm_plugins.runtime.signals import Handlers
from medmllm_plugins.utils.atomic_files import remove_drafts
from medmllm_plugins.utils.environment import package_versions, peak_memory_bytes
from medmllm_plugins.utils.locking import FolderLock

Key = TypeVar("Key")
_BELOW = (FEATURES, ATTRIBUTIONS)
_COMMAND = ("model", "model_args", "tasks", "batch_size", "limit", "num_fewshot", "gen_kwargs", "use_cache")


class EvaluationRun:
    """One evaluation: its folder, and the manifest that says how its numbers were made.

    Nothing is written before :meth:`open`, which happens when the first answers are asked for: a run that fails on
    its data or its arguments leaves no folder behind.

    Attributes:
        run_dir: the folder that was asked for.
        rank: of this process; the first alone writes.
        expected: tasks that are to be scored, beside those that the manifest names.
        manifest: content of ``manifest.json``.
        anchors: by task, the names of its anchors' answers in the journal by the anchor's id, and why there is no
            anchor of some kind.
        patched: by task, the names of patched answers in the journal by what they are, and why some are missing;
            empty if none is.
        exchanged: by task, what was exchanged between documents.
        cut: by task, the attention that was cut.
        steered: by task, the pushes of states.
        intervened: by task, the interventions of plugins.
    """

    def __init__(self, run_dir: str | Path | None = None, *, in_command: Callable[[], bool] = lambda: False) -> None:
        """Begin a run.

        Args:
            run_dir: the folder that was asked for; ``None`` for a new one below the host's ``--output_path``. It may
                be set up to :meth:`open`.
            in_command: whether the process is a command, which Ctrl-C ends.
        """
        self.run_dir = run_dir
        self.folder: Path | None = None
        self.output_path: str | None = None
        self.rank = int(os.environ.get("RANK") or 0)
        self.expected: frozenset[str] = frozenset()
        self.anchors: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {}
        self.patched: dict[str, tuple[Mapping[Any, str], str]] = {}
        self.exchanged: dict[str, Any] = {}
        self.cut: dict[str, Any] = {}
        self.steered: dict[str, Any] = {}
        self.intervened: dict[str, Any] = {}
        self._journal: Journal | None = None
        self._resumed = False
        self._lock: FolderLock | None = None
        self._earlier_entries: dict[str, Entry] = {}
        self._carried: frozenset[str] = frozenset()
        self._handlers = Handlers(self._how_to_continue, in_command)
        self.manifest = Manifest(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            platform=platform.platform(),
            versions=package_versions(),
            plugins=get_manager().describe()["plugins"],
        )

    def arguments(self, arguments: Any) -> None:
        """Note what the host's command line says (a namespace, or ``None`` when it is called from Python)."""
        self.output_path = getattr(arguments, "output_path", None) or self.output_path
        self.note(seed=getattr(arguments, "seed", None))
        if arguments is not None:
            self.note(command={name: getattr(arguments, name, None) for name in _COMMAND})

    def note(self, **facts: Any) -> None:
        """Set fields of the manifest, which is written with the next stage or task."""
        self.manifest = replace(self.manifest, **facts)

    def folder_for(self, model: str) -> Path:
        """Choose a folder, make it and write the manifest; a second call changes nothing.

        It is the folder of an earlier start of this run, else the one that was asked for, else a new one. A folder that
        another process uses, or that holds results which would be lost, is left alone, and the next free one of the
        same name with a number is used, see :func:`medmllm_plugins.runtime.run_claim.claim_folder`.
        """
        if self.folder is None:
            folder = (None if self._journal is None else self._journal.run) or self.run_dir
            if folder is None:
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
                folder = self._parent / f"{stamp}-{model}-{os.getpid()}"
            self.folder = Path(folder)
            if self.rank == 0:
                journal = None if self._journal is None else self._journal.folder
                claim = claim_folder(self.folder, self.manifest, journal, resumed=self._resumed)
                self.folder, self._lock = claim.folder, claim.lock
                remove_drafts(self.folder, _BELOW)
                self._carry(claim.earlier)
                if self._journal is not None:
                    self._journal.run = self.folder
            self.write()
        return self.folder

    def _carry(self, earlier: Manifest) -> None:
        """Keep the entries of other tasks that the folder holds, in the manifest and in the seal."""
        assert self.folder is not None, "called before a folder was chosen"
        own = self.manifest.tasks
        tasks = {name: entry for name, entry in earlier.tasks.items() if name not in own}
        if not tasks:
            return
        evaluations = list(earlier.evaluations)
        listed = {name for evaluation in evaluations for name in evaluation.tasks}
        if unlisted := tuple(name for name in tasks if name not in listed):
            past = {name: getattr(earlier, name) for name in ("started", "finished", "command", "stages")}
            evaluations.append(Evaluation(tasks=unlisted, **past))
        self.note(tasks={**tasks, **own}, evaluations=tuple(evaluations))
        self._carried = frozenset(tasks)
        self._earlier_entries = {
            name: entry for name, entry in read_seal(self.folder)[0].items() if not self._is_own(name)
        }

    @property
    def _own_tasks(self) -> dict[str, TaskEntry]:
        """The manifest's entries about tasks of this run, not of an earlier one in the same folder."""
        return {task: entry for task, entry in self.manifest.tasks.items() if task not in self._carried}

    def _is_own(self, name: str) -> bool:
        """Return whether a file of the run folder is written by this run, not by an earlier one."""
        own = self._own_tasks
        stems = {file_stem(task) for task in own}
        parts = name.split("/")
        if len(parts) > 2 and parts[0] in (FEATURES, ATTRIBUTIONS):
            return parts[1] in stems
        folds = {f"{entry.settings.dataset}{FOLDS}" for entry in own.values() if entry.settings is not None}
        return name == MANIFEST or name in folds or any(name.startswith(f"{stem}.") for stem in stems)

    def open(self, model: str, facts: Mapping[str, Any]) -> Journal:
        """Begin to answer: find or make the journal of these answers, and the run's folder.

        A second call, for another kind of request, continues with the same.

        ``facts`` decide the answers beside the tasks: the model, its options, this package's version.
        """
        if self._journal is None:
            tasks = {answering_name(name): _deciding(entry) for name, entry in self.manifest.tasks.items()}
            # A secret among the facts enters the name as a part of what is hashed, and in no other way.
            self._journal = Journal(self._parent, hash_facts({**facts, "tasks": tasks}), self.rank)
            self._resumed = self._journal.run is not None
            if self.rank == 0:
                remove_drafts(self._journal.folder, _BELOW)
        self.folder_for(model)
        return self._journal

    def anchor_answers(self, task: str) -> tuple[dict[str, str], Mapping[str, str]]:
        """Return the text of the answers to a task's anchors by their id, and why there is no anchor of some kind.

        Both are empty where none were asked, as where a cache served all answers.
        """
        names, not_run = self.anchors.get(task, ({}, {}))
        return {item: reply.text for item, reply in self.replies(names).items()}, not_run

    def replies(self, names: Mapping[Key, str]) -> dict[Key, Reply]:
        """Return the answers of all processes by the keys of their ``names`` in the journal, where there is one."""
        replies = {} if self._journal is None or not names else self._journal.read_again()
        return {key: replies[name] for key, name in names.items() if name in replies}

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Say on Ctrl-C and SIGTERM how to continue, while this lasts and afterwards until the run is finished."""
        self._handlers.install()
        with self.closed_on_error():
            yield

    def folder_of(self, kind: str, task: str) -> Path:
        """Return where the :data:`FEATURES` or :data:`ATTRIBUTIONS` of a task are while its documents are answered.

        That is beside the journal, which all ranks know; in the run folder if an earlier start has moved them there.

        Raises:
            RuntimeError: :meth:`open` was not called.
        """
        if self._journal is None:
            raise RuntimeError(f"expected a run with a journal, where {kind} are kept; call open() first")
        by_journal, run = self._journal.folder / kind / file_stem(task), self._journal.run
        moved = None if run is None or not self._resumed else run / kind / file_stem(task)
        return moved if moved is not None and moved.is_dir() and not by_journal.is_dir() else by_journal

    def keep_features(self, task: str) -> Path | None:
        """Move the features of a task, now that all processes have written theirs, into the run folder.

        Returns:
            The store's folder; ``None`` where no features were kept, as where a cache served all answers.
        """
        folder = self._keep(FEATURES, task)
        if folder is not None:
            from medmllm_plugins.features.store import seal

            seal(folder)
        return folder

    def keep_attributions(self, task: str) -> Path | None:
        """Move the attributions of a task into the run folder, as :meth:`keep_features` does features."""
        return self._keep(ATTRIBUTIONS, task)

    def _keep(self, kind: str, task: str) -> Path | None:
        assert self.folder is not None, "the run has a folder once answers are there"
        source = None if self._journal is None else self.folder_of(kind, task)
        target = self.folder / kind / file_stem(task)
        if source is not None and source.is_dir() and source.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():  # of a start that ended before answers were stored; moved away in one step
                old = target.with_name(f".{target.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
                shutil.move(source, target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                shutil.move(source, target)
        return target if target.is_dir() else None

    @property
    def _parent(self) -> Path:
        """The folder of run folders and journals."""
        return Path(self.run_dir) if self.run_dir is not None else Path(self.output_path or ".") / RUNS

    def answered(self) -> None:
        """Note that all requests are answered, which finishes a run without a task of ours."""
        if self._journal is not None and all(entry.settings is None for entry in self._own_tasks.values()):
            self._finish()

    def predicted(self, name: str, count: int) -> None:
        """Note answers that are not to be scored; after the last task the run closes.

        It is not finished: its answers stay in the journal, for a run that scores them.
        """
        self.task(name, predicted=count)
        if all(entry.predicted is not None for entry in self._own_tasks.values() if entry.settings is not None):
            self.close()

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the run if answering or scoring fails, since a caller from Python continues."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def scored(self, name: str, summary: AnySummary, unreadable: str = "") -> None:
        """Add a task's metrics to the manifest; after the last task the run is finished."""
        self.task(name, evaluated=summary.n, metrics=summary.metrics, unreadable=unreadable)
        tasks = self.manifest.tasks
        ours = {task for task, entry in tasks.items() if entry.settings is not None} | self.expected
        if all(task in tasks and tasks[task].metrics is not None for task in ours):
            self._finish()

    def _finish(self) -> None:
        """Mark the run as finished, seal the folder, remove the journal: in this order, so that each step may fail."""
        self.note(finished=datetime.now(UTC).isoformat(timespec="seconds"))
        self.write()
        if self.folder is not None and self.rank == 0:
            write_seal(self.folder, self._known_sums(), self._earlier_entries)
        if self._journal is not None:
            self._journal.remove()
            self._journal = None
        self.close()

    def _known_sums(self) -> dict[str, str]:
        """Return the checksums of feature shards, made when these were written, by name in the run folder."""
        assert self.folder is not None, "called before a folder was chosen"
        sums: dict[str, str] = {}
        for store in sorted((self.folder / FEATURES).glob("*")):
            from medmllm_plugins.results.feature_store import shard_sums

            sums |= {f"{FEATURES}/{store.name}/{shard}": value for shard, value in shard_sums(store).items()}
        return sums

    def close(self) -> None:
        """Release the folder, the journal and the signals: the run is finished, or another begins in this process."""
        self._handlers.restore()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._journal is not None:
            self._journal.close()

    def _how_to_continue(self) -> str:
        """Return the line that is printed when the run is interrupted; empty for all processes but the first."""
        if self.rank != 0:
            return ""
        journal = "" if self._journal is None else f" What was answered is kept in {self._journal.folder}."
        return f"medmllm: the run was interrupted.{journal} Start the same command again to continue."

    def task(self, name: str, **fields: Any) -> None:
        """Set fields of a task's entry in the manifest, a :class:`~medmllm_plugins.results.manifest.TaskEntry`."""
        tasks = self.manifest.tasks
        self.note(tasks={**tasks, name: replace(tasks.get(name, TaskEntry()), **fields)})
        self.write()

    def model(self, entry: ModelEntry) -> None:
        """Note the model that answers."""
        self.note(model=entry)
        self.write()

    @contextmanager
    def stage(self, name: str, device: str = "cpu") -> Iterator[None]:
        """Measure wall time and peak memory of a stage; stages of one name are added up.

        The process's peak is what the operating system reports for the whole life of the process so far; the
        device's peak is the stage's own.
        """
        cuda = device.startswith("cuda")
        if cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            stages = {stage.name: stage for stage in self.manifest.stages}
            before = stages.get(name)
            device_peak = None if before is None else before.device_peak_bytes
            if cuda:
                device_peak = max(device_peak or 0, torch.cuda.max_memory_allocated(device))
            stages[name] = StageUsage(
                name=name,
                seconds=round(seconds + (0 if before is None else before.seconds), 4),
                process_peak_bytes=peak_memory_bytes(),
                device_peak_bytes=device_peak,
            )
            self.note(stages=tuple(stages.values()))
            self.write()

    def write(self) -> None:
        """Write the manifest whole, or leave the old one."""
        if self.folder is not None and self.rank == 0:
            write_manifest(self.folder, self.manifest)
            if self.manifest.finished and self._lock is None:
                update_seal(self.folder, [MANIFEST])


def _deciding(entry: TaskEntry) -> dict[str, Any]:
    """Return the fields of a task's entry that decide its answers.

    How many documents are evaluated or explained is not among them, so that a run with wrong layers or methods is
    started again with others and finds its answers.
    """
    if entry.settings is None:
        return {}
    deciding = ("protocol", "order", "paraphrase", "image", "view", "features", "finding")
    return {"dataset_fingerprint": entry.dataset_fingerprint, **{key: getattr(entry.settings, key) for key in deciding}}
