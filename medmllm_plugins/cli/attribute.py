"""``medmllm attribute``: chosen documents of a run explained again, by other methods or at other layers.

What is explained is what the run answered: text, class and scores are read from its folder, and nothing is answered
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmllm_plugins.attribution.attribution_store import AttributionStore, write_index, write_table
from medmllm_plugins.attribution.explainer import Item, explain
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError, OptionError, print_error
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_rows import TaskRows
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.results.outcome_files import SUFFIX, RunResults, file_stem, load_run, read_answers
from medmllm_plugins.results.seal import take_out_of_seal, update_seal
from medmllm_plugins.runtime.evaluation_run import ATTRIBUTIONS


def attribute(
    folder: Path,
    ids: Sequence[str],
    asked: AttributionOptions,
    *,
    task: str | None = None,
    device: str | None = None,
    batch: int = 8,
    say: Callable[[str], None] = print_error,
) -> dict[str, Any]:
    """Load a run's model again and explain documents; the results join those of the run.

    Args:
        folder: the run folder.
        ids: of the documents.
        asked: methods, layers, target and baseline; its ``n`` has no part in it.
        task: whose; may be left out where the run has one task.
        device: where to compute; as the run did where ``None``.
        batch: the most rows that go through the model together.
        say: takes a line about what does not agree in the folder.

    Returns:
        The index of all that is explained, see :func:`medmllm_plugins.attribution.attribution_store.write_index`.

    Raises:
        DataError: the data are not those of the run, or it answered no such document.
        OptionError: there is no such task, method, layer or label, the batch holds no row, the model is none of this
            package's, or the run showed it something else than the document alone.
    """
    if batch < 1:
        raise OptionError(f"Expected `--batch_size` to be at least 1, found {batch}.")
    run = load_run(folder)
    for warning in run.warnings:
        say(f"Warning: {warning}")
    name = _task(list(run.manifest["tasks"]), task)
    run.require_sealed(f"{ATTRIBUTIONS}/{file_stem(name)}/")
    settings = task_settings(name)
    asked.check(TaskRows(settings, ()).classes)
    _alone(name, run.manifest["tasks"][name], settings)
    data = load_dataset(settings.dataset, on_error=settings.on_error)
    told = run.manifest["tasks"][name].get("dataset_fingerprint")
    if told != data.fingerprint:
        raise DataError(f"{name}: expected the data of the run (fingerprint {told}), found {data.fingerprint}.")
    loaded = _load(run.manifest.get("model") or {}, device)
    items = _items(loaded, TaskContent(name, settings, data), _answers(run, name, ids))
    shelf = AttributionStore(folder / ATTRIBUTIONS / file_stem(name), asked.to_dict(), "again", again=True)
    take_out_of_seal(folder, [f"{ATTRIBUTIONS}/{file_stem(name)}/"])
    explain(loaded, asked, items, shelf, batch)
    model, labels = str(run.manifest["model"]["name"]), TaskRows(settings, ()).classes
    index = write_index(shelf.folder, name, model, labels)
    write_table(folder / f"{file_stem(name)}.attributions.csv", index)
    update_seal(folder, [f"{ATTRIBUTIONS}/{file_stem(name)}/", f"{file_stem(name)}.attributions.csv"])
    return index


def _task(there: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted not in there:
        raise OptionError(f"Expected `--task` to be one of {list(there)}, found {wanted!r}.")
    return str(wanted)


def _alone(name: str, told: Mapping[str, Any], settings: TaskSettings) -> None:
    """See that the run showed the model each document itself, and nothing beside it.

    Raises:
        OptionError: it showed control images, or solved examples before each question.
    """
    if (image := told.get("image", settings.image)) != "shown":
        raise OptionError(f"{name}: expected a run with image=shown, which alone can be explained, found {image}.")
    if shots := told.get("shots", 0):
        raise OptionError(f"{name}: expected a run without few-shot examples, found --num_fewshot {shots}.")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a run answered: its text, and its scores of the labels where it has some."""

    text: str
    scores: tuple[float, ...] | None


def _answers(run: RunResults, name: str, ids: Sequence[str]) -> dict[str, _Answer]:
    """What the run answered of some documents, by id.

    Raises:
        DataError: it answered none of some id.
    """
    path = run.folder / f"{file_stem(name)}{SUFFIX}"
    texts = read_answers(path) if name in run.outcomes else {}
    known = {one.id: _Answer(texts[one.id], one.scores) for one in run.outcomes.get(name, ()) if one.id in texts}
    if unknown := [one for one in ids if one not in known]:
        close = ", ".join(sorted(known)[:5]) or "none"
        raise DataError(
            f"{name}: expected ids of documents that the run answered, such as {close}; found {', '.join(unknown)}."
        )
    return {one: known[one] for one in ids}


def _load(facts: dict[str, Any], device: str | None) -> LoadedModel:
    """The run's model, loaded as it was."""
    spec = get_manager().models().get(str(facts.get("name")))
    if spec is None or spec.wrapper is not None:
        raise OptionError(
            f"Expected a run of a model that this package or a plugin loads, found {facts.get('name')!r}."
        )
    options = LoadOptions(
        pretrained=str(facts["pretrained"]),
        device=device or str(facts["device"]),
        dtype=str(facts["dtype"]),
        attn_implementation=facts.get("attn_implementation"),
        device_map=facts.get("device_map"),
        load_in=facts.get("load_in"),
        peft=facts.get("peft"),
        system=facts.get("system"),
    )
    loaded = load_model(spec, options)
    if loaded.fingerprint != facts["fingerprint"]:
        raise DataError(
            f"{facts['pretrained']}: expected the weights of the run (fingerprint {facts['fingerprint']}), found "
            f"{loaded.fingerprint}."
        )
    return loaded


def _items(loaded: LoadedModel, content: TaskContent, answers: Mapping[str, _Answer]) -> list[Item]:
    """Return the documents as the run answered them."""
    by_id = {str(row["id"]): row for row in content.row_list}
    items = []
    for name, answer in answers.items():
        row = by_id[name]
        visual, mask = _visual(loaded, content, row), content.readable_lesion_mask(row)
        items.append(Item.of(row, content.question(row), visual, answer.text, answer.scores, mask))
    return items


def _visual(loaded: LoadedModel, content: TaskContent, row: Row) -> VisualInput:
    if loaded.shows == "volume":
        return content.volume(row)
    images = content.images(row)
    return images if loaded.shows == "images" else images[0]
