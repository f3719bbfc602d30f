"""Whether the files of a run folder agree: with its seal, and figures with the answers that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.results.file_names import MANIFEST, METRICS
from medmllm_plugins.results.manifest import Manifest, TaskEntry
from medmllm_plugins.results.metric_files import read_metrics
from medmllm_plugins.results.outcome_files import AGAIN, UNSEALED
from medmllm_plugins.results.recomputation import Classes, disagreements, format_differences, recompute
from medmllm_plugins.results.seal import SealCheck, describe
from medmllm_plugins.utils.json_values import clean


def of_folder(manifest: Manifest, seal: SealCheck) -> list[str]:
    """Say what is not as it was when the run finished, or that it did not finish."""
    is_there = manifest != Manifest()
    if is_there and not manifest.finished:
        return [f"The run is not finished. {AGAIN}"]
    if is_there and not seal.sealed:
        return [f"Its files cannot be checked: {seal.fault} {UNSEALED}"]
    notes = []
    if seal.differing:
        notes.append(
            f"Files differ from the seal of the finished run: {clean(describe(seal.differing))}. What rests on them is "
            "left out or computed again from the answers."
        )
    if MANIFEST in seal.differing:
        notes.append(f"{MANIFEST} is among them: what it says of model, command and data may be wrong.")
    return notes


def is_complete(task: TaskEntry, metrics: Mapping[str, Any], outcomes: Sequence[Outcome]) -> bool:
    """Return whether all answers are there that were scored, by a task's entry in the manifest and its metrics."""
    scored = metrics.get("n")
    if task.evaluated is not None:
        return len(outcomes) == task.evaluated
    return not isinstance(scored, int) or len(outcomes) >= scored


def checked_summary(
    stem: str,
    task: TaskEntry,
    stored: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    seal: SealCheck,
    missing: list[str],
) -> AnySummary | None:
    """Return the metrics to show of a task: those on file where they agree with the answers, else new ones.

    Changed figures are never shown with intervals of others: all are computed again, or none are shown.

    Args:
        stem: the task's part of the files' names.
        task: its entry in the manifest.
        stored: the content of ``TASK.metrics.json``; may be empty.
        outcomes: its scored answers; empty where they cannot be relied on, or are not all there.
        seal: how the folder compares with its seal.
        missing: takes a sentence on what does not agree.
    """
    name = f"{stem}{METRICS}"
    unlike_seal = bool(seal.among(name))
    if not stored and not unlike_seal:
        return None
    classes = Classes.of_task(task, {} if unlike_seal else stored) if outcomes else None
    if classes is None:
        if not unlike_seal:
            return read_metrics(stored)
        missing.append(f"the figures of {name} are left out: they are not those that were sealed.")
        return None
    try:
        differences = [] if unlike_seal else disagreements(stored, outcomes, classes)
        summary = recompute(outcomes, classes) if differences or unlike_seal else read_metrics(stored)
    except (DataError, OptionError) as error:
        missing.append(f"the figures of {name} are left out, since they cannot be checked: {clean(shown(error))}")
        return None
    if differences:
        missing.append(
            f"{name} does not agree with the scored answers: {clean(format_differences(differences))}. All figures and "
            "intervals were computed again from the answers."
        )
    elif unlike_seal:
        missing.append(f"{name} is not the file that was sealed: its figures were computed again from the answers.")
    return summary


def left_out(path: Path, folder: Path, seal: SealCheck, missing: list[str], remedy: str = "") -> bool:
    """Return whether a file is left out because it is not the one that was sealed; add a sentence if so."""
    name = path.relative_to(folder).as_posix()
    if faults := seal.among(name):
        missing.append(f"{name} is left out: it is not the file that was sealed ({faults[name]}). {remedy}".strip())
    return bool(faults)
