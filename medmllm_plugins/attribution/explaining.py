"""Explaining chosen documents one after the other: maps by every method at every locus, checked and put on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmllm_plugins.answers.protocols import Question as AskedQuestion
from medmllm_plugins.attribution import pictures, randomisation
from medmllm_plugins.attribution.case import Case
from medmllm_plugins.attribution.checks import (
    NOISE,
    NOISE_DRAWS,
    Checks,
    Removal,
    lesion,
    order_of_patches,
    order_of_words,
    similarity,
    structural_similarity,
)
from medmllm_plugins.attribution.files import Shelf
from medmllm_plugins.attribution.inputs import token_texts
from medmllm_plugins.attribution.maps import Map, map_of
from medmllm_plugins.attribution.methods import How
from medmllm_plugins.attribution.painting import FloatArray
from medmllm_plugins.attribution.registry import Chosen, choose
from medmllm_plugins.attribution.target import Target
from medmllm_plugins.capture.reach import unread
from medmllm_plugins.errors import DataError, ModelError, OptionError
from medmllm_plugins.models.interface import LoadedModel, Question, Shown
from medmllm_plugins.questions.attributions import ANSWER, DECISION, TRUTH, Attributions

logger = logging.getLogger(__name__)

RANDOMISED = 2
"""So many documents are explained again by models with shuffled weights."""


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
    shown: Shown
    classes: tuple[str, ...]
    answers: tuple[str, ...]
    mask: Any = None

    @classmethod
    def of(cls, row: Mapping[str, Any], asked: AskedQuestion, shown: Shown, text: str, scores: Any, mask: Any) -> Item:
        """A row of a task, as it was answered.

        Args:
            row: see :class:`medmllm_plugins.questions.rows.Rows`.
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
        """What is explained of it; see :class:`medmllm_plugins.questions.attributions.Attributions`.

        Raises:
            OptionError: it is no class.
        """
        if wanted == ANSWER:
            return Target.of_answer(self.answer)
        if wanted == DECISION:
            return Target.of_label(self.classes[int(np.argmax(self.scores))], self.classes, self.answers)
        return Target.of_label(self.label if wanted == TRUTH else wanted, self.classes, self.answers)


class Explainer:
    """Explains the documents of one task with one model."""

    def __init__(self, loaded: LoadedModel, asked: Attributions, shelf: Shelf, batch: int, example: Item) -> None:
        """Settle on methods and loci.

        Args:
            loaded: the model.
            asked: what is to be explained, and how.
            shelf: where results go.
            batch: the most rows that go through the model together.
            example: a document, to find what the model never reads.

        Raises:
            OptionError: a method, a locus or the target is none there is.
        """
        self._loaded, self._asked, self._shelf, self._batch = loaded, asked, shelf, batch
        self._how = How(steps=asked.steps)
        asked.check(example.classes)
        self.chosen = settle(loaded, asked, example.question, example.shown)
        self._shuffled: list[Item] = []
        self.warnings: list[str] = []
        shelf.begin([asdict(one.spec) for one in self.chosen])

    def explain(self, item: Item) -> None:
        """Explain one document, unless that was done by an earlier start of the same run."""
        if len(self._shuffled) < RANDOMISED:
            self._shuffled.append(item)
        if self._shelf.has(item.id):
            return
        try:
            target = item.target(self._asked.target)
        except OptionError as error:
            self._warn(f"{item.id}: left out: {error}")
            return
        case = self._case(item, target)
        entries = []
        original = self._shelf.original(item.id, pictures.stacked(pictures.originals(case)))
        removals: dict[str, Removal] = {}
        noisy: dict[Chosen, list[dict[str, FloatArray]]] = {}
        for chosen, locus, one in self._maps(case):
            if chosen not in noisy:
                noisy[chosen] = self._under_noise(case, chosen)
            stability = float(np.mean([similarity(one.values, again[locus]) for again in noisy[chosen]]))
            checks = self._check(case, item, one, stability, removals)
            entry = {
                "id": item.id,
                "document": item.document,
                "group": item.group,
                "label": item.label,
                "predicted": item.predicted,
                "answer": item.answer,
                "hit": item.predicted == item.label,
                "target": target.name,
                "log_odds": case.value,
                "method": chosen.spec.name,
                "locus": locus,
                "original": original,
                "tokens": self._tokens(case, one),
                "checks": checks.to_dict(),
            }
            entries.append(entry | self._shelf.map(item.id, chosen.spec.name, locus, one, case))
        self._shelf.keep(item.id, entries)

    def finish(self) -> None:
        """Compare maps with those of models whose weights are shuffled, and write what holds for all documents."""
        self._shelf.finish(self._randomised(), self.warnings)

    def _case(self, item: Item, target: Target) -> Case:
        return Case(self._loaded, item.question, item.shown, target, baseline=self._asked.baseline, batch=self._batch)

    def _maps(self, case: Case) -> list[tuple[Chosen, str, Map]]:
        found = []
        for chosen in self.chosen:
            try:
                scores = chosen.method(case, chosen.loci, self._how)
                found += [(chosen, locus, map_of(case, locus, scores[locus])) for locus in chosen.loci]
            except ModelError as error:  # the other methods may work
                self._warn(f"{chosen.spec.name}: {error}")
        return found

    @staticmethod
    def _check(case: Case, item: Item, one: Map, stability: float, removals: dict[str, Removal]) -> Checks:
        part = "prompt" if one.painted is None else "image"
        if part not in removals:
            removals[part] = Removal.of_prompt(case) if part == "prompt" else Removal.of_image(case)
        removal = removals[part]
        order = order_of_words(case, one) if part == "prompt" else order_of_patches(case, one)
        deletion, insertion = removal.areas(order)
        inside, area, pointing = None, None, None
        if one.painted is not None and len(one.painted) == 1 and item.mask is not None and item.mask.any():
            inside, area, pointing = lesion(one.painted, item.mask)
        return Checks(
            completeness_gap=one.gap,
            deletion=deletion,
            deletion_random=removal.random[0],
            insertion=insertion,
            insertion_random=removal.random[1],
            stability=stability,
            inside=inside,
            area=area,
            pointing=pointing,
        )

    def _under_noise(self, case: Case, chosen: Chosen) -> list[dict[str, FloatArray]]:
        """What a method says of the image under noise, by locus, a few times over."""
        usual = case.inputs["pixel_values"]
        spread = NOISE * float(usual.float().max() - usual.float().min())
        found = []
        try:
            for draw in range(NOISE_DRAWS):
                noise = torch.randn(usual.shape, generator=torch.Generator().manual_seed(draw))
                case.inputs["pixel_values"] = usual + (spread * noise).to(usual.device, usual.dtype)
                case.forget()
                scores = chosen.method(case, chosen.loci, self._how)
                found.append({locus: one.values.detach().double().cpu().numpy() for locus, one in scores.items()})
        finally:
            case.inputs["pixel_values"] = usual
            case.forget()
        return found

    @staticmethod
    def _tokens(case: Case, one: Map) -> list[dict[str, Any]] | None:
        if one.tokens is None:
            return None
        texts = token_texts(case)
        return [
            {"text": text, "value": float(value)}
            for text, value, own in zip(texts, one.tokens, case.text.tolist(), strict=True)
            if own
        ]

    def _randomised(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Similarity of maps before and after shuffling, by method and locus, mean over documents."""
        if not self._shuffled:
            return {}
        if not randomisation.possible(self._loaded):
            self._warn(
                "Weights are quantised and cannot be shuffled: maps were not compared with those of such models."
            )
            return {}
        cases = [self._case(item, item.target(self._asked.target)) for item in self._shuffled]
        before = [{(one.spec.name, locus): found for one, locus, found in self._maps(case)} for case in cases]
        told: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for level in randomisation.LEVELS:
            with randomisation.shuffled(self._loaded, level):
                for case in cases:
                    case.forget()
                after = [{(one.spec.name, locus): found for one, locus, found in self._maps(case)} for case in cases]
            for key in before[0]:
                pairs = [(old[key], new[key]) for old, new in zip(before, after, strict=True) if key in new]
                if not pairs:
                    continue
                shapes = [
                    structural_similarity(old.painted, new.painted)
                    for old, new in pairs
                    if old.painted is not None and new.painted is not None
                ]
                told.setdefault(key, []).append(
                    {
                        "randomised": level,
                        "similarity": float(np.mean([similarity(old.values, new.values) for old, new in pairs])),
                        "structural_similarity": float(np.mean(shapes)) if shapes else None,
                        "documents": len(pairs),
                    }
                )
        return told

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            logger.warning(message)


def settle(loaded: LoadedModel, asked: Attributions, question: Question, shown: Shown) -> list[Chosen]:
    """The methods and loci that a model can be explained by, found on one document before any is answered.

    Args:
        loaded: the model.
        asked: what is to be explained, and how.
        question: of the document.
        shown: its image, images or volume.

    Raises:
        OptionError: a method or a locus is none there is, or the weights are quantised and the method takes gradients.
        PluginError: a method's function is not where its plugin says.
    """
    return choose(asked.methods, asked.layers, loaded, unread(loaded, loaded.prepare([question], [shown])))


def explain(
    loaded: LoadedModel, asked: Attributions, items: Sequence[Item], shelf: Shelf, batch: int
) -> Mapping[str, Any]:
    """Explain some documents of one task; see :class:`Explainer`.

    Args:
        loaded: the model.
        asked: what is to be explained, and how.
        items: the documents.
        shelf: where results go.
        batch: the most rows that go through the model together.

    Returns:
        What the manifest tells.

    Raises:
        DataError: there is no document.
        OptionError: a method, a locus or the target is none there is.
    """
    if not items:
        raise DataError("Expected documents to explain, found none.")
    explainer = Explainer(loaded, asked, shelf, batch, items[0])
    for item in items:
        explainer.explain(item)
    explainer.finish()
    return {"documents": len(items), "folder": str(Path("attributions") / shelf.folder.name)}
