"""``medmllm attribute``: chosen documents of a run explained again, by other methods or at other layers.

What is explained are the answers of the run: text, class and scores are read from its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore, gather_index
from medmllm_plugins.attribution.checks.check_summary import format_summary
from medmllm_plugins.attribution.explainer import explain
from medmllm_plugins.cli.console import JsonFlag, MultiValueCommand, new_app, print_json
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError, OptionError, print_error
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.attribution_options import METHODS, AttributionOptions, Baseline
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_rows import TaskRows
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.results.attribution_files import write_table
from medmllm_plugins.results.file_names import ATTRIBUTION_CHECKS, ATTRIBUTIONS, OUTCOMES, file_stem
from medmllm_plugins.results.manifest import ModelEntry, TaskEntry
from medmllm_plugins.results.outcome_files import RunResults, load_run, read_answers
from medmllm_plugins.results.run_folders import one_run
from medmllm_plugins.results.seal import take_out_of_seal, update_seal

DEFAULTS: Final = AttributionOptions()
app = new_app()


@app.command(cls=MultiValueCommand, epilog="Example: medmllm attribute results --ids phantom-02868 --layer llm.3")
def attribute(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder, or the --output_path of a run.")],
    ids: Annotated[list[str], typer.Option(metavar="ID...", help="Documents, by the ids in the files of the run.")],
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help=f"Methods, of {', '.join(METHODS)}, …; default: these.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER...", help="Layers, such as vision.12, connector or llm.20.")
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What is explained: decision, truth, answer, or a class.")
    ] = DEFAULTS.target,
    baseline: Annotated[
        Baseline, typer.Option(help="The image that the document is compared with.")
    ] = DEFAULTS.baseline,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Points on the path of methods that integrate.")
    ] = DEFAULTS.steps,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task of the documents, if the run has several.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute: cpu or cuda.")] = None,
    batch_size: Annotated[
        int, typer.Option("--batch_size", metavar="N", help="Rows that go through the model together.")
    ] = 8,
    json: JsonFlag = False,
) -> None:
    """Explain documents of a run with other methods or layers.

    The run's model is loaded again. Answers and scores are read from the run, so nothing is generated.
    """
    options = AttributionOptions(
        methods=tuple(method or METHODS), layers=tuple(layer or ()), target=target, baseline=baseline, steps=steps
    )
    if batch_size < 1:
        raise OptionError(f"Expected `--batch_size` to be at least 1, got {batch_size}.")
    folder = one_run(run_dir)
    run = load_run(folder)
    for warning in run.warnings:
        print_error(f"Warning: {warning}")
    name = _choose_task(list(run.manifest.tasks), task)
    run.require_sealed(f"{ATTRIBUTIONS}/{file_stem(name)}/")
    settings = task_settings(name)
    options.check(TaskRows(settings, ()).classes)
    entry = run.manifest.tasks[name]
    _check_plain_input(name, entry, settings)
    data = load_dataset(settings.dataset, on_error=settings.on_error)
    expected = entry.dataset_fingerprint
    if expected != data.fingerprint:
        raise DataError(f"{name}: expected the data of the run (fingerprint {expected}), got {data.fingerprint}.")
    model = run.manifest.model or ModelEntry(name="")
    loaded = _load(model, device)
    items = _items(loaded, TaskContent(name, settings, data), _answers(run, name, ids))
    store = AttributionStore(folder / ATTRIBUTIONS / file_stem(name), options.to_dict(), "again", again=True)
    take_out_of_seal(folder, [f"{ATTRIBUTIONS}/{file_stem(name)}/"])
    explain(loaded, options, items, store, batch_size)
    index = gather_index(store.folder, name, model.name, TaskRows(settings, ()).classes)
    write_table(folder / f"{file_stem(name)}{ATTRIBUTION_CHECKS}", index.summary)
    update_seal(folder, [f"{ATTRIBUTIONS}/{file_stem(name)}/", f"{file_stem(name)}{ATTRIBUTION_CHECKS}"])
    if json:
        print_json(index.to_dict())
    else:
        print(format_summary(index))


def _choose_task(tasks: Sequence[str], task: str | None) -> str:
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        raise OptionError(f"Expected `--task` to be one of {list(tasks)}, got {task!r}.")
    return str(task)


def _check_plain_input(name: str, entry: TaskEntry, settings: TaskSettings) -> None:
    """Check that the run showed the model each document itself and nothing more."""
    if (image := entry.settings.image if entry.settings else settings.image) != "shown":
        raise OptionError(
            f"{name}: expected a run with image=shown, because control images cannot be explained, got {image}."
        )
    if entry.shots:
        raise OptionError(f"{name}: expected a run without few-shot examples, got --num_fewshot {entry.shots}.")


def _answers(run: RunResults, name: str, ids: Sequence[str]) -> dict[str, tuple[str, tuple[float, ...] | None]]:
    """Return the run's answers about some documents by id: their texts, and their scores of the labels if any."""
    path = run.folder / f"{file_stem(name)}{OUTCOMES}"
    texts = read_answers(path) if name in run.outcomes else {}
    outcomes = [outcome for outcome in run.outcomes.get(name, ()) if outcome.id in texts]
    known = {outcome.id: (texts[outcome.id], outcome.scores) for outcome in outcomes}
    if unknown := [document for document in ids if document not in known]:
        close = ", ".join(sorted(known)[:5]) or "none"
        raise DataError(
            f"{name}: expected ids of documents that the run answered, such as {close}; got {', '.join(unknown)}."
        )
    return {document: known[document] for document in ids}


def _load(model: ModelEntry, device: str | None) -> LoadedModel:
    """Load the model of the run as the run did."""
    spec = get_manager().models().get(model.name)
    if spec is None or spec.wrapper is not None:
        raise OptionError(f"Expected a run of a model that this package or a plugin loads, got {model.name!r}.")
    options = LoadOptions(
        pretrained=str(model.pretrained),
        device=device or str(model.device),
        dtype=str(model.dtype),
        attn_implementation=model.attn_implementation,
        device_map=model.device_map,
        load_in=model.load_in,
        peft=model.peft,
        repair=model.repair,
        system=model.system,
    )
    loaded = load_model(spec, options)
    if loaded.fingerprint != model.fingerprint:
        raise DataError(
            f"{model.pretrained}: expected the weights of the run (fingerprint {model.fingerprint}), got "
            f"{loaded.fingerprint}."
        )
    return loaded


def _items(
    loaded: LoadedModel, content: TaskContent, answers: Mapping[str, tuple[str, tuple[float, ...] | None]]
) -> list[AttributionItem]:
    """Return the documents as the run answered them."""
    by_id = {str(row["id"]): row for row in content.row_list}
    items = []
    for name, (text, scores) in answers.items():
        row = by_id[name]
        visual, mask = _visual(loaded, content, row), content.readable_lesion_mask(row)
        items.append(AttributionItem.from_row(row, content.question(row), visual, text, scores, mask))
    return items


def _visual(loaded: LoadedModel, content: TaskContent, row: Row) -> VisualInput:
    if loaded.shows == "volume":
        return content.volume(row)
    images = content.images(row)
    return images if loaded.shows == "images" else images[0]
