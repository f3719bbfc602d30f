"""Explain documents one by one: maps by every method at every layer, checked and written to disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medmllm_plugins.attribution import map_images
from medmllm_plugins.attribution.attribution_input import AttributionInput, run_within_memory
from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore
from medmllm_plugins.attribution.attribution_target import Target, generated_ids
from medmllm_plugins.attribution.checks import randomisation
from medmllm_plugins.attribution.checks.map_checks import map_similarity
from medmllm_plugins.attribution.checks.map_evaluator import MapEvaluator
from medmllm_plugins.attribution.explanation_faults import Faults
from medmllm_plugins.attribution.maps import AttributionMap, build_map
from medmllm_plugins.attribution.methods.input_methods import token_texts
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.methods.method_registry import SelectedMethod, select_methods
from medmllm_plugins.errors import DataError, ModelError, one_line
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.results.attribution_records import (
    RANDOMISATION_LEVELS,
    AttributionEntry,
    AttributionFault,
    AttributionMethod,
    ProcessCascade,
    ProcessLevel,
    TokenAttribution,
)
from medmllm_plugins.utils.progress import Progress, duration, say_line

logger = logging.getLogger(__name__)

RANDOMISED = 2
"""Documents that are explained again by models with shuffled weights."""

MapKey = tuple[str, str]
"""A method and a layer."""


class Explainer:
    """Explains the documents of one task with one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        options: AttributionOptions,
        store: AttributionStore,
        batch: int,
        example: AttributionItem,
    ) -> None:
        """Choose methods and layers; ``example`` is a document to find out which layers the model does not use.

        Raises:
            OptionError: A method, a layer or the target does not exist.
        """
        self._loaded, self._options, self._store, self._batch = loaded, options, store, batch
        self._config = MethodConfig(steps=options.steps)
        # Maps of one method at one layer are summarised together only if they share these settings.
        self._settings: dict[str, Any] = {
            "mode": options.target, "baseline": options.baseline, "steps": options.steps
        }  # fmt: skip
        options.check(example.classes)
        self.selected = resolve_methods(loaded, options, example.question, example.visual)
        self._compared: dict[str, list[AttributionItem]] = {}
        self.warnings: list[str] = []
        self._map_seconds = 0.0
        self._first: tuple[float, float] | None = None
        store.begin([AttributionMethod(**asdict(selected.spec)) for selected in self.selected])

    def explain(self, item: AttributionItem) -> None:
        """Explain one document, unless an earlier start of the same run did.

        A failure leaves out only the part that it concerns; see
        :class:`medmllm_plugins.attribution.explanation_faults.Faults`.
        """
        if not self._store.has(item.id):
            start, self._map_seconds = time.perf_counter(), 0.0
            faults, entries = Faults(item.id, item.visual), list[AttributionEntry]()
            with faults.skipping():
                case = self._case(item)
                image = map_images.stack_vertically(map_images.originals(case))
                self._add_entries(case, item, self._store.original(item.id, image), entries, faults)
                self._batch = case.batch
            self._store.add(item.id, entries, faults.records)
            if self._first is None:
                self._first = (time.perf_counter() - start, self._map_seconds)
        explained = self._store.methods(item.id)
        for selected in self.selected:
            compared = self._compared.setdefault(selected.spec.name, [])
            if selected.spec.name in explained and len(compared) < RANDOMISED:
                compared.append(item)

    def estimate(self, documents: int) -> float | None:
        """Return the seconds that further documents will take, judged by the first that was explained.

        Returns:
            None where no document was explained so far, as where an earlier start explained them.
        """
        if self._first is None:
            return None
        document_seconds, map_seconds = self._first
        levels = 1 + len(RANDOMISATION_LEVELS) if randomisation.can_shuffle(self._loaded) else 0
        return documents * document_seconds + RANDOMISED * levels * map_seconds

    def finish(self) -> None:
        """Compare maps with those of models with shuffled weights, and write what holds for all documents."""
        faults: list[AttributionFault] = []
        levels: dict[MapKey, list[ProcessLevel]] = {}
        try:
            levels = self._randomisation_levels(faults)
        except Exception as error:  # a plugin's model may raise anything; the maps made so far are worth keeping
            self._warn(f"Maps were not compared with those of shuffled weights: {one_line(error)}")
        cascades = [
            ProcessCascade(method=method, layer=layer, **self._settings, levels=tuple(similarities))
            for (method, layer), similarities in levels.items()
        ]
        self._store.finish(cascades, self.warnings, faults)

    def _case(self, item: AttributionItem) -> AttributionInput:
        target = item.target(self._options.target)
        if not target.is_label:
            target = self._with_generated_ids(item, target)
        return AttributionInput(
            self._loaded, item.question, item.visual, target, baseline=self._options.baseline, batch=self._batch
        )

    def _with_generated_ids(self, item: AttributionItem, target: Target) -> Target:
        """Return the target with the tokens of the answer, generated again, since a run stores only its text."""
        ids = generated_ids(self._loaded, item.question, item.visual, target.name)
        if ids is None:
            # In a batch, and in low precision, numbers differ a little.
            self._warn(f"{item.id}: alone, the model generates another answer; the tokens of its text are explained.")
            ids = tuple(self._loaded.label_ids(item.question, [target.name])[0][self._loaded.prefix_length :])
        return replace(target, ids=ids)

    def _add_entries(
        self,
        case: AttributionInput,
        item: AttributionItem,
        original: Path,
        entries: list[AttributionEntry],
        faults: Faults,
    ) -> None:
        """Add an entry for each method and layer, with its map and its checks."""
        evaluator = MapEvaluator(case, item.id, item.mask, self._config, faults)
        for selected, maps in self._maps(case, self.selected, faults):
            name = selected.spec.name
            noisy_values = evaluator.noisy_values(selected)
            for layer, map_ in maps.items():
                checks = evaluator.evaluate(name, map_, noisy_values)
                with faults.skipping(name, layer):
                    entry = AttributionEntry(
                        id=item.id,
                        document=item.document,
                        group=item.group,
                        label=item.label,
                        predicted=item.predicted,
                        answer=item.answer,
                        hit=item.predicted == item.label,
                        target=case.target.name,
                        value=case.value,
                        method=name,
                        layer=layer,
                        original=original,
                        tokens=token_values(case, map_),
                        checks=checks,
                        **self._settings,
                        **self._store.map(item.id, name, layer, map_, case),
                    )
                    entries.append(entry)

    def _maps(
        self, case: AttributionInput, methods: Iterable[SelectedMethod], faults: Faults
    ) -> list[tuple[SelectedMethod, dict[str, AttributionMap]]]:
        """Return the maps of a document by method and layer, without those that fail."""
        results, start = [], time.perf_counter()
        for selected in methods:
            name, maps = selected.spec.name, dict[str, AttributionMap]()
            with faults.skipping(name):
                scores = run_within_memory(case, partial(selected.method, case, selected.layers, self._config))
                for layer in selected.layers:
                    with faults.skipping(name, layer):
                        maps[layer] = build_map(case, layer, scores_at(scores, layer))
                        if maps[layer].unplaced:  # its words have values all the same
                            faults.add(name, f"{layer}, image", maps[layer].unplaced)
            if maps:
                results.append((selected, maps))
        self._map_seconds += time.perf_counter() - start
        return results

    def _randomisation_levels(self, faults: list[AttributionFault]) -> dict[MapKey, list[ProcessLevel]]:
        """Return how similar maps are before and after shuffling, by method and layer, averaged over documents.

        Each method is compared on the first documents that it gave maps of.
        """
        items = {item.id: item for compared in self._compared.values() for item in compared}
        if not items:
            return {}
        if not randomisation.can_shuffle(self._loaded):
            self._warn("Quantised weights cannot be shuffled: maps were not compared with those of shuffled weights.")
            return {}
        cases = {name: self._case(item) for name, item in items.items()}

        def compute_maps(name: str, recorder: Faults) -> dict[MapKey, AttributionMap]:
            methods = [method for method in self.selected if items[name] in self._compared[method.spec.name]]
            return {
                (method.spec.name, layer): map_
                for method, maps in self._maps(cases[name], methods, recorder)
                for layer, map_ in maps.items()
            }

        known_faults = {name: Faults(name, item.visual) for name, item in items.items()}
        before = {name: compute_maps(name, known_faults[name]) for name in items}
        keys = list(dict.fromkeys(key for maps in before.values() for key in maps))
        levels: dict[MapKey, list[ProcessLevel]] = {}
        with randomisation.cascading_randomisation(self._loaded) as cascade:
            for level in cascade:
                after = {}
                for name, item in items.items():
                    # What fails with the original weights was reported when the document was explained.
                    recorder = Faults(name, item.visual, "with shuffled weights", known_faults[name])
                    cases[name].clear_cache()
                    after[name] = compute_maps(name, recorder)
                    faults += [record for record in recorder.records if record not in faults]
                for key in keys:
                    both = [(before[name], after[name]) for name in items]
                    if pairs := [(old[key], new[key]) for old, new in both if key in old and key in new]:
                        similarity = ProcessLevel(randomised=level, **map_similarity(pairs))
                        levels.setdefault(key, []).append(similarity)
        return levels

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            logger.warning(message)


def scores_at(scores: Any, layer: str) -> Scores:
    """Return what a method computed at a layer, or raise a ModelError if it returned something else."""
    result = scores.get(layer) if isinstance(scores, Mapping) else None
    if not isinstance(result, Scores) or not isinstance(result.values, torch.Tensor):
        kind = type(result.values if isinstance(result, Scores) else scores if result is None else result).__name__
        layers = f" for {', '.join(map(str, scores))}" if isinstance(scores, Mapping) and result is None else ""
        raise ModelError(
            f"Expected the method to return `Scores` with a tensor for {layer}, got {kind}{layers}. Correct the method."
        )
    return result


def token_values(case: AttributionInput, map_: AttributionMap) -> tuple[TokenAttribution, ...] | None:
    """Return text and value of each text token of the prompt, or None for maps of the image alone."""
    if map_.tokens is None:
        return None
    rows = zip(token_texts(case), map_.tokens, case.text.tolist(), strict=True)
    return tuple(TokenAttribution(text=text, value=float(value)) for text, value, is_text in rows if is_text)


def resolve_methods(
    loaded: LoadedModel, options: AttributionOptions, question: Question, visual: VisualInput
) -> list[SelectedMethod]:
    """Return the methods and layers to use, determined with one document before any is answered.

    Raises:
        OptionError: A method or a layer does not exist, or the weights are quantised and the method needs gradients.
        PluginError: A method's function is not where its plugin declares it.
    """
    unused = unused_layers(loaded, loaded.prepare([question], [visual]))
    return select_methods(options.methods, options.layers, loaded, unused)


def explain(
    loaded: LoadedModel,
    options: AttributionOptions,
    items: Sequence[AttributionItem],
    store: AttributionStore,
    batch: int,
    say: Callable[[str], None] = say_line,
) -> None:
    """Explain some documents of one task; see :class:`Explainer`.

    ``say`` receives a line with the expected time, once the first document is explained.

    Raises:
        DataError: There is no document.
        OptionError: A method, a layer or the target does not exist.
    """
    if not items:
        raise DataError("Expected documents to explain, got none. Choose other ids, or a larger n.")
    names = [item.id for item in items]
    if not store.is_finished(names):  # by an earlier start of the same run
        explainer, title, is_estimated = Explainer(loaded, options, store, batch, items[0]), store.folder.name, False
        with Progress(f"{title}: attributions", len(items)) as progress:
            for number, item in enumerate(items, 1):
                explainer.explain(item)
                progress.update()
                if not is_estimated and (seconds := explainer.estimate(len(items) - number)) is not None:
                    is_estimated = True
                    count = f"{len(items)} document{'s' if len(items) > 1 else ''}"
                    say(
                        f"{title}: attributions take about {duration(seconds)} more for {count}, judged by the first. "
                        "Fewer documents (n=), methods (method=) or layers (layer=) take less."
                    )
        with Progress(f"{title}: maps of models with shuffled weights", None, "maps"):
            explainer.finish()
        store.note_finished(names)
