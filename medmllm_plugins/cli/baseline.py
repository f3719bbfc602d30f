"""``medmllm baseline``: the run of a reference classifier, for ``compare``, ``diagnose`` and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medmllm_plugins.cli.console import new_app
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
from medmllm_plugins.reference.reference_methods import make_classifier
from medmllm_plugins.results import scoring
from medmllm_plugins.results.manifest import ModelEntry
from medmllm_plugins.runtime.evaluation_run import EvaluationRun

_USES: Final[dict[Fold, str]] = {"train": "learn from", "validation": "choose settings on", "test": "be tested on"}
app = new_app()


@app.command(epilog="Example: medmllm baseline med_cls_busi --method pixels --output results")
def baseline(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK", help="Tasks, named as for an evaluation.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="majority (the most common class), pixels (logistic regression) or timm:NAME (fine-tuned network).",
        ),
    ] = "pixels",
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the run, like --output_path of lmms-eval.")
    ] = Path(),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the random generators.")] = 0,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="timm: pretrained weights.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="timm: maximum number of epochs.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="timm: device to train on, such as cuda.")] = None,
) -> None:
    """Train a reference classifier and score it like a model.

    It learns from the train fold and is scored on the test fold, with the metrics of the task.
    """
    chosen = {task: _checked(task, task_settings(task)) for task in dict.fromkeys(tasks)}
    run = EvaluationRun()
    run.output_path = str(output)
    run.note(command={"baseline": method, "tasks": list(chosen)}, seed=seed)
    run.expected = frozenset(chosen)
    with run.stage("data"):
        sets = {task: load_dataset(settings.dataset, on_error=settings.on_error) for task, settings in chosen.items()}
    models = {
        task: make_classifier(method, seed=seed, weights=weights, epochs=epochs, device=device) for task in chosen
    }
    examples = {task: _examples(sets[task], chosen[task], models[task]) for task in chosen}
    for task, settings in chosen.items():
        model, folds = models.pop(task), examples.pop(task)
        with run.stage("train"):
            model.fit(folds["train"], folds["validation"])
        with run.stage("answer"):
            log_probabilities = model.log_probabilities(folds["test"])
        run.model(ModelEntry(name=f"baseline {method}", method=method))
        run.folder_for(f"baseline-{method.replace(':', '-').replace('/', '-')}")
        run.task(task, baseline={"method": method, **model.facts()})
        for warning in _leaks(sets[task]):
            run.task(task, leaks=warning)
            print(f"Warning: {warning}")
        _write(run, task, settings, folds["test"], log_probabilities)
    print(f"Details: {run.folder}")


def _checked(task: str, settings: TaskSettings) -> TaskSettings:
    if settings.folds != ("test",):
        raise OptionError(
            f"{task}: expected the test fold alone, since a classifier learns from the others, got "
            f"{'+'.join(settings.folds)}."
        )
    if settings.image != "shown":
        raise OptionError(
            f"{task}: expected image=shown, since a classifier is trained on images, got {settings.image}."
        )
    return settings


def _examples(data: Dataset, settings: TaskSettings, model: ReferenceClassifier) -> dict[Fold, LabelledImages]:
    examples: dict[Fold, LabelledImages] = {}
    for fold, use in _USES.items():
        examples[fold] = LabelledImages(data, settings.view, data.select((fold,)))
        if not len(examples[fold]) and (fold != "validation" or model.chooses):
            raise DataError(
                f"{data.spec.title}: expected documents in the {fold} fold, to {use}, got none; its counts are "
                f"{data.counts()}."
            )
    return examples


def _write(
    run: EvaluationRun,
    task: str,
    settings: TaskSettings,
    examples: LabelledImages,
    log_probabilities: LogProbabilities,
) -> None:
    data = examples.data
    rows = TaskRows(settings, examples.documents)
    document_index = {document.id: index for index, document in enumerate(examples.documents)}
    finding_index = {finding: index for index, finding in enumerate(examples.findings)}
    outcomes = []
    for row in rows:
        scores = log_probabilities[document_index[row["document"]], finding_index[row["finding"]]]
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
    run.task(task, **scoring.facts(settings, data, documents=len(rows.documents), questions=len(outcomes)))
    scoring.write(folder, task, summary, outcomes, {outcome.id: outcome.predicted or "" for outcome in outcomes}, data)
    run.scored(task, summary)
    print(f"{task}: {summary.headline()}")


def _leaks(data: Dataset) -> list[str]:
    """Return a warning about groups that make a trained classifier look better than it is, if there are any."""
    divided = divided_groups(data.documents)
    leaking = sum(document.fold == "test" and "train" in divided.get(document.group, ()) for document in data.documents)
    if not leaking:
        return []
    return [
        f"{data.spec.title}: {leaking} test documents share a group (patient, lesion, source or near-duplicate) with "
        f"the train fold, so a trained classifier looks better than it is; `medmllm datasets --check {data.spec.name}` "
        "lists them."
    ]
