"""``medmllm baseline``: an ordinary classifier's run folder, for ``compare`` and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.core.leaks import divided_groups
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_rows import TaskRows
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.reference.classifier import ReferenceClassifier
from medmllm_plugins.reference.labelled_images import LabelledImages, LogProbabilities
from medmllm_plugins.results import scoring
from medmllm_plugins.runtime.evaluation_run import EvaluationRun

_USES: Final[dict[Fold, str]] = {"train": "learn from", "validation": "choose settings on", "test": "be tested on"}


def baseline(
    tasks: Sequence[str],
    method: str,
    make: Callable[[], ReferenceClassifier],
    *,
    output: Path,
    say: Callable[[str], None],
    seed: int = 0,
) -> Path:
    """Train a reference classifier for each task and score it as a model is scored.

    Args:
        tasks: names of tasks, arguments behind them as for an evaluation.
        method: its name, for the manifest.
        make: makes it, untrained.
        output: the parent of the run folder, as the host's ``--output_path``.
        say: told, line by line, what came of it.
        seed: for the manifest.

    Returns:
        The run folder.

    Raises:
        OptionError: a task is none of ours, or asks about other folds or images than a classifier can be tested on.
        DataError: a data set is faulty, or has no train or validation fold.
    """
    chosen = {task: _checked(task, task_settings(task)) for task in dict.fromkeys(tasks)}
    run = EvaluationRun()
    run.output_path = str(output)
    run.manifest["command"] = {"baseline": method, "tasks": list(chosen)}
    run.manifest["seed"] = seed
    run.expected = frozenset(chosen)
    with run.stage("data"):
        sets = {task: load_dataset(settings.dataset, on_error=settings.on_error) for task, settings in chosen.items()}
    models = {task: make() for task in chosen}
    examples = {task: _examples(sets[task], chosen[task], models[task]) for task in chosen}
    for task, settings in chosen.items():
        model, folds = models.pop(task), examples.pop(task)
        with run.stage("train"):
            model.fit(folds["train"], folds["validation"])
        with run.stage("answer"):
            found = model.log_probabilities(folds["test"])
        run.model({"name": f"baseline {method}", "method": method})
        run.folder_for(f"baseline-{method.replace(':', '-').replace('/', '-')}")
        run.task(task, {"baseline": {"method": method, **model.facts()}})
        for warning in _leaks(sets[task]):
            run.task(task, {"leaks": warning})
            say(f"Warning: {warning}")
        _write(run, task, settings, folds["test"], found, say)
    assert run.folder is not None
    return run.folder


def _checked(task: str, settings: TaskSettings) -> TaskSettings:
    if settings.folds != ("test",):
        raise OptionError(
            f"{task}: expected the test fold alone, since a classifier learns from the others, found "
            f"{'+'.join(settings.folds)}."
        )
    if settings.image != "shown":
        raise OptionError(
            f"{task}: expected image=shown, since a classifier is trained on images, found {settings.image}."
        )
    return settings


def _examples(data: Dataset, settings: TaskSettings, model: ReferenceClassifier) -> dict[Fold, LabelledImages]:
    found: dict[Fold, LabelledImages] = {}
    for fold, use in _USES.items():
        found[fold] = LabelledImages(data, settings.view, data.select((fold,)))
        if not len(found[fold]) and (fold != "validation" or model.chooses):
            raise DataError(
                f"{data.spec.title}: expected documents in the {fold} fold, to {use}, found none; its counts are "
                f"{data.counts()}."
            )
    return found


def _write(
    run: EvaluationRun,
    task: str,
    settings: TaskSettings,
    examples: LabelledImages,
    found: LogProbabilities,
    say: Callable[[str], None],
) -> None:
    data = examples.data
    rows = TaskRows(settings, examples.documents)
    place = {document.id: index for index, document in enumerate(examples.documents)}
    question = {finding: index for index, finding in enumerate(examples.findings)}
    outcomes = []
    for row in rows:
        scores = found[place[row["document"]], question[row["finding"]]]
        answer = examples.answers[int(scores.argmax())]
        outcomes.append(
            Outcome(
                id=row["id"],
                group=row["group"],
                label=row["label"],
                predicted=answer,
                status="parsed",
                scores=tuple(float(score) for score in scores),
                finding=row["finding"] or None,
                variant=row["variant"],
                document=row["document"],
            )
        )
    summary = scoring.score(outcomes, settings)
    folder = run.folder_for("baseline")
    run.task(task, scoring.facts(settings, data, documents=len(rows.documents), questions=len(outcomes)))
    scoring.write(folder, task, summary, outcomes, {one.id: one.predicted or "" for one in outcomes}, data)
    run.scored(task, {"evaluated": summary.n, "metrics": summary.to_dict()["metrics"]})
    say(f"{task}: {summary.headline()}")


def _leaks(data: Dataset) -> list[str]:
    """What makes a trained classifier look better than it is."""
    divided = divided_groups(data.documents)
    leaking = sum(one.fold == "test" and "train" in divided.get(one.group, ()) for one in data.documents)
    if not leaking:
        return []
    return [
        f"{data.spec.title}: {leaking} test documents share a group (patient, lesion, source or near-duplicate) with "
        f"the train fold, which flatters a trained classifier; `medmllm datasets --check {data.spec.name}` lists them."
    ]
