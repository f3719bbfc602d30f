"""Checks of an intervention, on the model that ships with this package and phantoms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from medmllm_plugins.data.layouts.phantoms import LABELS
from medmllm_plugins.errors import PluginError, one_line
from medmllm_plugins.interventions.paired_losses import paired_losses
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.results.intervention_files import write_interventions
from medmllm_plugins.results.intervention_records import ConditionPoint, Intervention, InterventionResults
from medmllm_plugins.runtime.intervention_loop import check_scores
from medmllm_plugins.testing.check_outcomes import CheckFailed, require, require_close
from medmllm_plugins.testing.check_subjects import InterventionSubject
from medmllm_plugins.testing.demo import QUESTION, phantoms
from medmllm_plugins.testing.model_state import ModelState

IMAGES: Final = 4


def intervene(subject: InterventionSubject, rows: Sequence[int] = range(IMAGES)) -> Mapping[str, Any]:
    """Return the label scores by condition of some phantoms.

    Raises:
        CheckFailed: the intervention fails, or returns something else.
    """
    images = [phantoms(IMAGES)[row].image for row in rows]
    try:
        scores = subject.function(subject.demo, QUESTION, images, LABELS, 0)
    except Exception as error:
        raise CheckFailed(f"{subject.name}: expected label scores by condition, got {one_line(error)}") from error
    try:
        return check_scores(subject.name, scores, len(images), len(LABELS))
    except PluginError as error:
        raise CheckFailed(str(error)) from error


def check_scores_have_their_shapes(subject: InterventionSubject) -> None:
    """Assert that each condition has a name and finite scores of all labels for all documents.

    Otherwise the scores of all documents are left out of the results.
    """
    intervene(subject)


def check_second_run_gives_the_same(subject: InterventionSubject) -> None:
    """Assert that a second run on the same documents gives the same scores.

    A run that is interrupted continues with stored scores; random choices must follow from the document.
    """
    first, second = intervene(subject), intervene(subject)
    require(
        list(first) == list(second),
        f"{subject.name}: expected the same conditions in two runs, got {sorted(set(first) ^ set(second))[:3]}.",
    )
    for condition, rows in first.items():
        what = f"{subject.name}, {condition}, second run"
        require_close(second[condition], rows, what, "Seed what is drawn at random.", tolerance=1e-4)


def check_scores_do_not_depend_on_the_batch(subject: InterventionSubject) -> None:
    """Assert that each document has alone the conditions and scores that it has in a batch.

    Batches are of any size, and their documents in any order.
    """
    batch = intervene(subject)
    for row in range(IMAGES):
        alone = intervene(subject, [row])
        require(
            list(alone) == list(batch),
            f"{subject.name}: expected the conditions {list(batch)[:3]} for each batch, got {list(alone)[:3]} for a "
            "document alone.",
        )
        for condition, rows in alone.items():
            what = f"{subject.name}, {condition}, document {row} alone"
            advice = "Do not use the other documents of the batch."
            require_close(rows[0], batch[condition][row], what, advice)


def check_unchanged_model_is_left_behind(subject: InterventionSubject) -> None:
    """Assert that the model is as it was afterwards: its weights, its hooks and its answers.

    The next intervention, and the accuracy that effects are compared with, use the same model.
    """
    loaded = subject.demo
    scores, before = own_scores(loaded), ModelState.of(loaded)  # transformers adds hooks in the first pass
    intervene(subject)
    _require_unchanged(subject, before)
    advice = "Undo every edit."
    require_close(own_scores(loaded), scores, f"{subject.name}, scores afterwards", advice, tolerance=1e-5)


def check_errors_leave_no_edits(subject: InterventionSubject) -> None:
    """Assert that edits are undone when the model raises an error in the middle of a pass, such as out of memory.

    The loop then tries a smaller batch with the same model.
    """
    loaded = subject.demo
    head = stage_module(loaded.model, loaded.family.head)
    own_scores(loaded)  # transformers adds hooks in the first pass
    for last in range(1, 4):
        before, passes = ModelState.of(loaded), 0

        def fail(*_: Any, limit: int = last) -> None:
            nonlocal passes
            passes += 1
            if passes == limit:
                raise _Stopped("out of memory, for a check")

        handle = head.register_forward_pre_hook(fail)
        try:
            images = [item.image for item in phantoms(IMAGES)]
            subject.function(loaded, QUESTION, images, LABELS, 0)
        except _Stopped:
            pass
        finally:
            handle.remove()
        _require_unchanged(subject, before, " after an error")


class _Stopped(RuntimeError):
    """The error of a model that stops in the middle of a pass."""


def check_results_round_trip(subject: InterventionSubject) -> None:
    """Assert that the effects can be written to a run folder and read again, with the names of their conditions.

    The report and ``Run.interventions`` read them from there.
    """
    scores = intervene(subject)
    stored = json.loads(json.dumps({name: [[float(x) for x in row] for row in rows] for name, rows in scores.items()}))
    truth = np.array([LABELS.index(item.label) for item in phantoms(IMAGES)], dtype=np.intp)
    rows = {name: [tuple(row) for row in values] for name, values in stored.items()}
    accuracy, losses = paired_losses(own_scores(subject.demo), rows, truth, np.arange(IMAGES))
    points = tuple(
        ConditionPoint(condition=name, accuracy=loss.accuracy, lost=loss.lost, log_odds_lost=loss.log_odds_lost)
        for name, loss in losses.items()
    )
    result = Intervention(name=subject.name, summary=subject.spec.summary, accuracy=accuracy, points=points)
    results = InterventionResults(task="med_patch_demo", n=IMAGES, groups=IMAGES, results=(result,))
    folder = subject.folder / "run"
    folder.mkdir(exist_ok=True)
    try:
        write_interventions(folder, "med_patch_demo", results)
        (path,) = folder.glob("*.json")
        again = InterventionResults.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:
        raise CheckFailed(
            f"{subject.name}: expected results that can be written and read, got {one_line(error)}. Use plain text as "
            "names of conditions."
        ) from error
    require(
        again.to_dict() == results.to_dict(), f"{subject.name}: expected the results that were written, got others."
    )


def own_scores(loaded: LoadedModel) -> list[tuple[float, ...]]:
    """Return the label scores of the phantoms by the model as it is."""
    images = [item.image for item in phantoms(IMAGES)]
    generations = loaded.generate([QUESTION] * IMAGES, images, max_new_tokens=0, labels=LABELS)
    return [tuple(item.scores or ()) for item in generations]


def _require_unchanged(subject: InterventionSubject, before: ModelState, when: str = "") -> None:
    differences = before.differences(ModelState.of(subject.demo))
    require(
        not differences,
        f"{subject.name}: expected the model to be as it was{when}, got {', '.join(differences[:3])}. Undo every edit, "
        "also after an error.",
    )
