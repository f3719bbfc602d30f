"""``medmllm diagnose``: what probes tell, computed anew from the features that a run left; no model needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medmllm_plugins.errors import DataError, OptionError, print_error
from medmllm_plugins.features.store import FeatureStore
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference, find_reference, read_reference
from medmllm_plugins.prompts.task_names import probing_command
from medmllm_plugins.results.outcome_files import SUFFIX, RunResults, file_stem, load_run
from medmllm_plugins.results.probe_files import SUFFIXES, write_probes
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.seal import update_seal
from medmllm_plugins.runtime.evaluation_run import FEATURES


def diagnose(
    folder: Path,
    options: Options,
    *,
    tasks: Sequence[str] = (),
    reference: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print_error,
) -> list[ProbeAnalysis]:
    """Recompute the analyses of a run, and write them.

    Args:
        folder: the run folder.
        options: how to fit and compare.
        tasks: these only; all that kept features where empty.
        reference: run folder of a reference classifier; one that stands beside the run is found by itself.
        output: where to write; the run folder, whose earlier files are replaced, where ``None``.
        device: where to fit.
        say: takes a line about what does not agree in the folder.

    Raises:
        DataError: the run kept no features, or they are damaged or of another model or data set than the run; or the
            run was stopped.
        OptionError: there is no such task or device, ``reference`` is the run itself, or ``output`` is no folder or
            left out with some of the layers or poolings only.
    """
    run = load_run(folder)
    for warning in run.warnings:
        say(f"Warning: {warning}")
    held = _tasks(run)
    if unknown := sorted(set(tasks) - set(held)):
        raise OptionError(f"Expected tasks among {held}, which kept features, found {unknown}.")
    target = _target(folder, output, options)
    where = None if device is None else resolve_device(device)
    found = []
    for task in tasks or held:
        store = open_store(run, task)
        compared = _reference(folder, reference, store)
        analysis = analyse(
            store,
            _outcomes(run, task),
            options,
            reference=compared,
            device=where,
        )
        write_probes(target, file_stem(task), analysis)
        found.append(analysis)
        if target.resolve() == folder.resolve():
            update_seal(folder, [f"{file_stem(task)}{suffix}" for suffix in SUFFIXES])
    return found


def _tasks(run: RunResults) -> list[str]:
    """The tasks of a run that kept features."""
    held = [task for task in run.manifest["tasks"] if (run.folder / FEATURES / file_stem(task)).is_dir()]
    if held:
        return held
    if run.manifest.get("finished") is None:
        raise DataError(
            f"{run.folder}: expected a finished run, found one that was stopped. What it has answered is kept: start "
            "the same command again, and it goes on from there."
        )
    how = probing_command(run.manifest.get("command") or {}, next(iter(run.manifest["tasks"]), "med_cls_demo"))
    raise DataError(
        f"{run.folder}: expected features of a med_probe task, got none.{f' Run one: {how}' if how else ''}"
    )


def _target(folder: Path, output: Path | None, options: Options) -> Path:
    """Where to write, made if need be; a part of the curves must not take the place of the whole."""
    if output is None and (options.layers or options.poolings):
        raise OptionError(
            "Expected argument `output` with some of the layers or poolings only, as the run's own files hold all of "
            "them: name a folder with --output."
        )
    target = folder if output is None else output
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"Expected `output` to be a folder, but {target} is none ({error.strerror}).") from error
    return target


def _outcomes(run: RunResults, task: str) -> Sequence[Outcome]:
    if task not in run.outcomes:
        raise DataError(
            f"{run.folder / (file_stem(task) + SUFFIX)}: expected the scored answers of {task}, found no file; copy "
            "the run folder again."
        )
    return run.outcomes[task]


def open_store(run: RunResults, task: str) -> FeatureStore:
    """The features of a task of a run, checked to be of this run and as they were written.

    Raises:
        DataError: they are damaged, or of another model or data set.
    """
    run.require_sealed(f"{FEATURES}/{file_stem(task)}/")
    store = FeatureStore(run.folder / FEATURES / file_stem(task))
    store.check()
    told: dict[str, Any] = run.manifest["tasks"][task]
    model: dict[str, Any] = run.manifest.get("model") or {}
    for what, expected, there in (
        ("model", model.get("fingerprint"), store.header.model_fingerprint),
        ("data set", told.get("dataset_fingerprint"), store.header.dataset_fingerprint),
    ):
        if expected != there:
            raise DataError(
                f"{store.folder}: expected features of the run's own {what} (fingerprint {str(expected)[:12]}…), found "
                f"those of another ({there[:12]}…). Do not mix run folders; run the task again."
            )
    return store


def _reference(folder: Path, named: Path | None, store: FeatureStore) -> Reference | None:
    fingerprint = store.header.dataset_fingerprint
    if named is not None and named.resolve() == folder.resolve():
        raise OptionError(f"Expected `reference` to be another run than {folder}, which would be held against itself.")
    return find_reference(folder, fingerprint) if named is None else read_reference(named, fingerprint)
