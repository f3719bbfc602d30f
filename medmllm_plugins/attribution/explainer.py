"""Explaining chosen documents one after the other: maps by every method at every layer, checked and put on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from medmllm_plugins.attribution import map_images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_store import AttributionStore
from medmllm_plugins.attribution.attribution_target import Target, generated_ids
from medmllm_plugins.attribution.cells import FloatArray
from medmllm_plugins.attribution.checks import randomisation
from medmllm_plugins.attribution.checks.map_checks import (
    NOISE,
    NOISE_DRAWS,
    Checks,
    Removal,
    document_seed,
    importance_order,
    is_constant,
    lesion_overlap,
    map_similarity,
    patch_values,
    rank_correlation,
    word_values,
)
from medmllm_plugins.attribution.explanation_faults import Faults
from medmllm_plugins.attribution.maps import AttributionMap, build_map
from medmllm_plugins.attribution.methods.input_methods import token_texts
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.methods.method_registry import SelectedMethod, select_methods
from medmllm_plugins.errors import DataError, ModelError, OptionError, one_line
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.models.device_memory import empty_cache, out_of_memory
from medmllm_plugins.prompts.attribution_options import ANSWER, DECISION, TRUTH, AttributionOptions
from medmllm_plugins.prompts.protocols import Question as AskedQuestion
from medmllm_plugins.utils.progress import Progress, duration, say_line

logger = logging.getLogger(__name__)

RANDOMISED = 2
"""So many documents are explained again by models with shuffled weights."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A document that was answered and is to be explained.

    Attributes:
        id: of its row.
        document: its id in the data set.
        group: its group.
        label: the right class.
        predicted: the class that was answered; ``None`` where none was.
        answer: the text of the answer.
        scores: log-probabilities of the answers, in class order.
        question: what was asked.
        shown: the image, images or volume.
        classes: all classes.
        answers: the words that stand for them.
        mask: (h, w) bool, the lesion on its one picture, where it is known.
    """

    id: str
    document: str
    group: str
    label: str
    predicted: str | None
    answer: str
    scores: tuple[float, ...]
    question: Question
    shown: VisualInput
    classes: tuple[str, ...]
    answers: tuple[str, ...]
    mask: Any = None

    @classmethod
    def of(
        cls, row: Mapping[str, Any], asked: AskedQuestion, shown: VisualInput, text: str, scores: Any, mask: Any
    ) -> Item:
        """A row of a task, as it was answered.

        Args:
            row: see :class:`medmllm_plugins.prompts.task_rows.TaskRows`.
            asked: its question.
            shown: what the model was shown.
            text: its answer.
            scores: its scores of the answers.
            mask: the lesion, where it is known.
        """
        return cls(
            id=str(row["id"]),
            document=str(row["document"]),
            group=str(row["group"]),
            label=str(row["label"]),
            predicted=asked.read(text).label,
            answer=text,
            scores=tuple(scores or ()),
            question=asked.text,
            shown=shown,
            classes=tuple(asked.classes),
            answers=tuple(asked.labels),
            mask=mask,
        )

    def target(self, wanted: str) -> Target:
        """What is explained of it; see :class:`medmllm_plugins.prompts.attribution_options.AttributionOptions`.

        Raises:
            OptionError: it is no class, or there is none to explain: the answer is empty, or no label was scored.
        """
        if wanted == ANSWER:
            return Target.of_answer(self.answer)
        if wanted == DECISION:
            if not self.scores:
                raise OptionError("Expected scores of the labels to decide by, found none; choose target=truth.")
            return Target.of_label(self.classes[int(np.argmax(self.scores))], self.classes, self.answers)
        return Target.of_label(self.label if wanted == TRUTH else wanted, self.classes, self.answers)


class Explainer:
    """Explains the documents of one task with one model."""

    def __init__(
        self, loaded: LoadedModel, asked: AttributionOptions, shelf: AttributionStore, batch: int, example: Item
    ) -> None:
        """Settle on methods and layers.

        Args:
            loaded: the model.
            asked: what is to be explained, and how.
            shelf: where results go.
            batch: the most rows that go through the model together.
            example: a document, to find what the model never reads.

        Raises:
            OptionError: a method, a layer or the target is none there is.
        """
        self._loaded, self._asked, self._shelf, self._batch = loaded, asked, shelf, batch
        self._how = MethodConfig(steps=asked.steps)
        asked.check(example.classes)
        self.chosen = resolve_methods(loaded, asked, example.question, example.shown)
        self._shuffled: dict[str, list[Item]] = {}
        self.warnings: list[str] = []
        self._map_seconds = 0.0
        self._first: tuple[float, float] | None = None
        shelf.begin([asdict(one.spec) for one in self.chosen])

    def explain(self, item: Item) -> None:
        """Explain one document, unless that was done by an earlier start of the same run.

        Whatever fails costs only what it is part of, see :class:`medmllm_plugins.attribution.explanation_faults.Faults`.
        """
        if not self._shelf.has(item.id):
            began, self._map_seconds = time.perf_counter(), 0.0
            faults, entries = Faults(item.id, item.shown), list[dict[str, Any]]()
            with faults.costing():
                case = self._case(item)
                original = self._shelf.original(item.id, map_images.stack_vertically(map_images.originals(case)))
                self._add_entries(case, item, original, entries, faults)
            self._shelf.keep(item.id, entries, faults.found)
            if self._first is None:
                self._first = (time.perf_counter() - began, self._map_seconds)
        explained = self._shelf.methods(item.id)
        for chosen in self.chosen:
            compared = self._shuffled.setdefault(chosen.spec.name, [])
            if chosen.spec.name in explained and len(compared) < RANDOMISED:
                compared.append(item)

    def estimate(self, documents: int) -> float | None:
        """Return the seconds that further documents will take, judged by the first that was explained.

        Args:
            documents: how many there are to come, beside the maps of models whose weights are shuffled.

        Returns:
            ``None`` where no document was explained so far, as where an earlier start explained them.
        """
        if self._first is None:
            return None
        whole, maps = self._first
        shuffled = RANDOMISED * (1 + len(randomisation.LEVELS)) if randomisation.can_shuffle(self._loaded) else 0
        return documents * whole + shuffled * maps

    def finish(self) -> None:
        """Compare maps with those of models whose weights are shuffled, and write what holds for all documents."""
        faults: list[dict[str, str]] = []
        randomised: dict[tuple[str, str], list[dict[str, Any]]] = {}
        try:
            randomised = self._randomised(faults)
        except Exception as error:  # of a plugin's model, say; what is explained already is kept and told of
            self._warn(f"Maps were not compared with those of shuffled weights: {one_line(error)}")
        self._shelf.finish(randomised, self.warnings, faults)

    def _case(self, item: Item) -> AttributionInput:
        target = item.target(self._asked.target)
        if not target.is_label:
            target = replace(target, ids=self._ids_of(item, target.name))
        return AttributionInput(
            self._loaded, item.question, item.shown, target, baseline=self._asked.baseline, batch=self._batch
        )

    def _ids_of(self, item: Item, text: str) -> tuple[int, ...]:
        """The tokens of an answer, generated again, since text alone is kept of it."""
        ids = generated_ids(self._loaded, item.question, item.shown, text)
        if ids is not None:
            return ids
        # In a batch, and in low precision, numbers differ a little.
        self._warn(f"{item.id}: the answer is generated otherwise on its own; the tokens of its text are explained.")
        return tuple(self._loaded.label_ids(item.question, [text])[0][self._loaded.prefix_length :])

    def _add_entries(
        self, case: AttributionInput, item: Item, original: str, entries: list[dict[str, Any]], faults: Faults
    ) -> None:
        """Add what all methods say of a document, each at its layers, with its checks."""
        removals: dict[tuple[str, int], Removal] = {}
        for chosen, maps in self._maps(case, self.chosen, faults):
            name, noisy = chosen.spec.name, list[dict[str, FloatArray]]()
            with faults.costing(name, "stability"):
                noisy = self._fitting(case, partial(self._under_noise, case, chosen))
            for layer, one in maps.items():
                checks = self._check(case, item, name, one, noisy, removals, faults)
                with faults.costing(name, layer):
                    entry = {
                        "id": item.id,
                        "document": item.document,
                        "group": item.group,
                        "label": item.label,
                        "predicted": item.predicted,
                        "answer": item.answer,
                        "hit": item.predicted == item.label,
                        "target": case.target.name,
                        "value": case.value,
                        "method": name,
                        "layer": layer,
                        "original": original,
                        "tokens": self._tokens(case, one),
                        "checks": checks.to_dict(),
                    }
                    entries.append(entry | self._shelf.map(item.id, name, layer, one, case))

    def _maps(
        self, case: AttributionInput, wanted: Iterable[SelectedMethod], faults: Faults
    ) -> list[tuple[SelectedMethod, dict[str, AttributionMap]]]:
        """What methods say of a document, by method and layer; those that fail are left out."""
        found, began = [], time.perf_counter()
        for chosen in wanted:
            name, maps = chosen.spec.name, dict[str, AttributionMap]()
            with faults.costing(name):
                scores = self._fitting(case, partial(chosen.method, case, chosen.layers, self._how))
                for layer in chosen.layers:
                    with faults.costing(name, layer):
                        maps[layer] = build_map(case, layer, _of_layer(scores, layer))
                        if maps[layer].unplaced:  # its words have values all the same
                            faults.add(name, f"{layer}, image", maps[layer].unplaced)
            if maps:
                found.append((chosen, maps))
        self._map_seconds += time.perf_counter() - began
        return found

    def _fitting(self, case: AttributionInput, work: Callable[[], Found]) -> Found:
        """Do what takes rows through the model; with half as many together, from then on, where they do not fit."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error) or case.batch == 1:
                    raise
            # Behind the except block, since the error holds on to what does not fit.
            empty_cache()
            case.batch = self._batch = case.batch // 2
            logger.info("Out of memory: from now on %d rows go through the model together.", case.batch)

    def _check(
        self,
        case: AttributionInput,
        item: Item,
        method: str,
        one: AttributionMap,
        noisy: Sequence[Mapping[str, FloatArray]],
        removals: dict[tuple[str, int], Removal],
        faults: Faults,
    ) -> Checks:
        """All checks of one map; ``None`` stands for those that fail, as for those that do not apply."""
        found: dict[str, Any] = {"completeness_gap": one.gap}
        with faults.costing(method, f"{one.layer}, stability"):
            if noisy:
                found["stability"] = float(np.mean([rank_correlation(one.values, again[one.layer]) for again in noisy]))
        with faults.costing(method, f"{one.layer}, deletion and insertion"):
            found |= self._fitting(case, partial(self._areas, case, item, one, removals))
        with faults.costing(method, f"{one.layer}, inside the lesion"):
            if one.painted is not None and len(one.painted) == 1 and item.mask is not None and item.mask.any():
                inside, area, pointing = lesion_overlap(one.painted, item.mask)
                found |= {"inside": inside, "area": area, "pointing": pointing}
        return Checks(**found)

    @staticmethod
    def _areas(
        case: AttributionInput, item: Item, one: AttributionMap, removals: dict[tuple[str, int], Removal]
    ) -> dict[str, float | bool | None]:
        """Areas under the curves of deletion and insertion, by the map's order and by random ones."""
        part, seed = "prompt" if one.painted is None else "image", document_seed(item.id)
        key = (part, case.batch)  # it holds on to the batch it was made with
        if key not in removals:
            removals[key] = Removal.of_prompt(case, seed) if part == "prompt" else Removal.of_image(case, seed)
        removal = removals[key]
        values = word_values(case, one) if part == "prompt" else patch_values(case, one)
        deletion, insertion = removal.areas(importance_order(values, seed))
        return {
            "deletion": deletion,
            "deletion_random": removal.random,
            "insertion": insertion,
            "insertion_random": removal.random,
            "flat": is_constant(values),
        }

    def _under_noise(self, case: AttributionInput, chosen: SelectedMethod) -> list[dict[str, FloatArray]]:
        """What a method says of the image under noise, by layer, a few times over."""
        usual = case.inputs["pixel_values"]
        spread = NOISE * float(usual.float().max() - usual.float().min())
        found = []
        try:
            for draw in range(NOISE_DRAWS):
                noise = torch.randn(usual.shape, generator=torch.Generator().manual_seed(draw))
                case.inputs["pixel_values"] = usual + (spread * noise).to(usual.device, usual.dtype)
                case.forget()
                # Methods that draw are to draw anew: what hangs on the draw is no more stable than what hangs on noise.
                scores = chosen.method(case, chosen.layers, replace(self._how, seed=self._how.seed + draw + 1))
                found.append({layer: one.values.detach().double().cpu().numpy() for layer, one in scores.items()})
        finally:
            case.inputs["pixel_values"] = usual
            case.forget()
        return found

    @staticmethod
    def _tokens(case: AttributionInput, one: AttributionMap) -> list[dict[str, Any]] | None:
        if one.tokens is None:
            return None
        texts = token_texts(case)
        return [
            {"text": text, "value": float(value)}
            for text, value, own in zip(texts, one.tokens, case.text.tolist(), strict=True)
            if own
        ]

    def _randomised(self, faults: list[dict[str, str]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Similarity of maps before and after shuffling, by method and layer, mean over documents.

        Each method is compared on the first documents that it gave maps of.

        Args:
            faults: those of shuffled models are added to it.
        """
        if not any(self._shuffled.values()):
            return {}
        if not randomisation.can_shuffle(self._loaded):
            self._warn(
                "Weights are quantised and cannot be shuffled: maps were not compared with those of such models."
            )
            return {}
        items = {item.id: item for compared in self._shuffled.values() for item in compared}
        cases = {name: self._case(item) for name, item in items.items()}

        def maps(name: str, said: Faults) -> dict[tuple[str, str], AttributionMap]:
            wanted = [one for one in self.chosen if items[name] in self._shuffled[one.spec.name]]
            found = self._maps(cases[name], wanted, said)
            return {(one.spec.name, layer): each for one, by_layer in found for layer, each in by_layer.items()}

        usual = {name: Faults(name, item.shown) for name, item in items.items()}
        before = {name: maps(name, usual[name]) for name in items}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        with randomisation.cascading_randomisation(self._loaded) as levels:
            for level in levels:
                after = {}
                for name, item in items.items():
                    # What fails with the weights as they are was told when the document was explained.
                    said = Faults(name, item.shown, "with shuffled weights", usual[name])
                    cases[name].forget()
                    after[name] = maps(name, said)
                    faults += [one for one in said.found if one not in faults]
                for key in dict.fromkeys(key for one in before.values() for key in one):
                    both = [(old, after[name]) for name, old in before.items()]
                    if pairs := [(old[key], new[key]) for old, new in both if key in old and key in new]:
                        found.setdefault(key, []).append({"randomised": level} | map_similarity(pairs))
        return found

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            logger.warning(message)


def _of_layer(scores: Any, layer: str) -> Scores:
    """What a method returned for a layer.

    Raises:
        ModelError: it returned something else.
    """
    found = scores.get(layer) if isinstance(scores, Mapping) else None
    if not isinstance(found, Scores) or not isinstance(found.values, torch.Tensor):
        kind = type(found.values if isinstance(found, Scores) else scores if found is None else found).__name__
        held = f" for {', '.join(map(str, scores))}" if isinstance(scores, Mapping) and found is None else ""
        raise ModelError(f"Expected the method to return `Scores` with a tensor for {layer}, found {kind}{held}.")
    return found


def resolve_methods(
    loaded: LoadedModel, asked: AttributionOptions, question: Question, shown: VisualInput
) -> list[SelectedMethod]:
    """The methods and layers that a model can be explained by, found on one document before any is answered.

    Args:
        loaded: the model.
        asked: what is to be explained, and how.
        question: of the document.
        shown: its image, images or volume.

    Raises:
        OptionError: a method or a layer is none there is, or the weights are quantised and the method takes gradients.
        PluginError: a method's function is not where its plugin says.
    """
    return select_methods(
        asked.methods, asked.layers, loaded, unused_layers(loaded, loaded.prepare([question], [shown]))
    )


def explain(
    loaded: LoadedModel,
    asked: AttributionOptions,
    items: Sequence[Item],
    shelf: AttributionStore,
    batch: int,
    say: Callable[[str], None] = say_line,
) -> Mapping[str, Any]:
    """Explain some documents of one task; see :class:`Explainer`.

    Args:
        loaded: the model.
        asked: what is to be explained, and how.
        items: the documents.
        shelf: where results go.
        batch: the most rows that go through the model together.
        say: is told how long it will take, once the first document is explained.

    Returns:
        What the manifest tells.

    Raises:
        DataError: there is no document.
        OptionError: a method, a layer or the target is none there is.
    """
    if not items:
        raise DataError("Expected documents to explain, found none.")
    names = [item.id for item in items]
    if not shelf.is_finished(names):  # by an earlier start of the same run
        _explain_all(Explainer(loaded, asked, shelf, batch, items[0]), items, shelf.folder.name, say)
        shelf.note_finished(names)
    return {"documents": len(items), "folder": str(Path("attributions") / shelf.folder.name)}


def _explain_all(explainer: Explainer, items: Sequence[Item], title: str, say: Callable[[str], None]) -> None:
    """Explain documents one after another; the first one tells how long all of them will take."""
    is_estimated = False
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
