"""Which metrics a task has, and how its outcomes become numbers and files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.data.core import fold_manifest
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.metrics.guessing import GUESSES, constant_guess
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.readability import DEMO_NOTE, AnySummary, unreadable
from medmllm_plugins.plugins.specs import DEMO
from medmllm_plugins.prompts.task_rows import variants
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.results.file_names import FOLDS, OUTCOMES, file_stem
from medmllm_plugins.results.manifest import ModelEntry, SettingsEntry
from medmllm_plugins.results.metric_files import write_metrics
from medmllm_plugins.results.outcome_files import write_outcomes
from medmllm_plugins.results.recomputation import Classes, recompute
from medmllm_plugins.utils.atomic_files import write_whole

METRICS: Final = ("accuracy", "balanced", "macro_f1", "mcc", "auroc", "parsed")
LOWER_IS_BETTER: Final = frozenset({"spread", "flips"})


def metrics(settings: TaskSettings) -> tuple[str, ...]:
    """Return the names of the metrics that lmms-eval prints for a task."""
    names: tuple[str, ...] = METRICS
    if settings.dataset.kind == "ordinal":
        names = (*names, "kappa")
    return (*names, "spread", "flips") if len(variants(settings)) > 1 else names


def score(outcomes: Sequence[Outcome], settings: TaskSettings) -> AnySummary:
    """Compute every metric of a task.

    Raises:
        DataError: the outcomes do not go with the data set.
    """
    return recompute(outcomes, classes_of(settings))


def unreadable_warning(summary: AnySummary, spec: DatasetSpec | None, model: ModelEntry | None) -> str:
    """Return the warning that replaces the headline where too few answers could be read; empty where enough were."""
    shortfall = unreadable(summary)
    if shortfall is None:
        return ""
    is_demo = model is not None and model.pretrained == DEMO and (spec is None or spec.layout != "phantoms")
    return shortfall.sentences(DEMO_NOTE if is_demo else "")


def result_sentence(task: str, summary: AnySummary, *, questions: int | None = None, warning: str = "") -> str:
    """Return the result of a task in one sentence: accuracy, its interval, and what guessing scores.

    Args:
        task: the task's name.
        summary: its metrics.
        questions: number of its questions that are scored, of which ``--limit`` leaves some out.
        warning: of :func:`unreadable_warning`, which takes the place of an accuracy that says little.
    """
    left_out = f" Only {summary.n} of {questions} questions were asked." if (questions or 0) > summary.n else ""
    if warning:
        return f"{task}: {warning}{left_out}"
    accuracy, (guess, share) = summary.metrics["accuracy"], constant_guess(summary.baselines)
    interval = "no interval: one group"
    if not math.isnan(accuracy.low):
        interval = f"95% CI {100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
    guessing = f"; {GUESSES[guess]}: {share:.1%}" if guess else ""
    return f"{task}: accuracy {accuracy.value:.1%} ({interval}{guessing}).{left_out}"


def classes_of(settings: TaskSettings) -> Classes:
    """Return what the outcomes of a task are scored by."""
    spec, compared = settings.dataset, variants(settings)
    # The classes in the order in which each variant lists them.
    orders = {
        variant.name: tuple(spec.labels[position] for position in variant.order)
        for variant in compared
        if variant.order is not None
    }
    varied = len(compared) > 1
    return Classes(tuple(spec.labels), spec.kind, spec.positive, varied, orders if varied and orders else None)


def facts(settings: TaskSettings, data: Dataset, *, documents: int, questions: int, shots: int = 0) -> dict[str, Any]:
    """Return the fields of a task's entry in the manifest that are known before it is answered."""
    classes = classes_of(settings)
    return {
        "settings": SettingsEntry.from_dict(settings.to_dict()),
        "labels": classes.labels,
        "kind": classes.kind,
        "positive": classes.positive,
        "orders": classes.orders or {},
        "dataset_fingerprint": data.fingerprint,
        "folds_hash": data.folds_hash,
        "counts": data.counts(),
        "documents": documents,
        "questions": questions,
        "shots": shots,
        "skipped": data.skipped,
        "warnings": data.warnings,
        "overlaps": dict(data.spec.overlaps),
        "notes": data.spec.notes,
    }


def write(
    folder: Path, task: str, summary: AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str], data: Dataset
) -> None:
    """Write a task's metrics, outcomes and folds into a run folder."""
    stem = file_stem(task)
    write_metrics(folder, stem, summary)
    write_outcomes(folder / f"{stem}{OUTCOMES}", outcomes, answers)
    manifest = fold_manifest.to_json(data.spec.name, data.fingerprint, data.documents)
    write_whole(folder / f"{data.spec.name}{FOLDS}", manifest)
