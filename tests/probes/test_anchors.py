"""Scores of anchors: the rule of the verdict, and a model that is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import binom
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import Generation, LoadedModel
from medmllm_plugins.probes.anchors import NO_WORDINGS, run_anchors, score_anchors
from medmllm_plugins.prompts.anchor_prompts import AnchorItem, mark_anchors, text_anchors
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.results.anchor_records import AnchorResult, Anchors


@pytest.fixture(scope="module")
def data() -> Dataset:
    return phantom_dataset()


def items_with(classes: int, count: int) -> list[AnchorItem]:
    names = [f"class {chr(97 + index)}" for index in range(classes)]
    question = ask("closed_set", "scan", dict.fromkeys(names, ()))
    return [AnchorItem(f"{n}", "text", question, names[n % classes], f"group {n}") for n in range(count)]


def result_with(items: Sequence[AnchorItem], correct: int) -> AnchorResult:
    """Score answers of which the first ones are right, spread over the classes, and the others wrong."""
    classes = tuple(items[0].question.classes)
    answers = {}
    for number, item in enumerate(items):
        other = classes[(classes.index(item.label) + 1) % len(classes)]
        answers[item.id] = item.label if number < correct else other
    return score_anchors(items, answers).results[0]


@pytest.mark.parametrize(("classes", "least"), [(2, 15), (3, 11), (4, 9), (9, 8)])
def test_the_fewest_prompts_with_which_an_anchor_can_count_as_answered(classes: int, least: int) -> None:
    assert result_with(items_with(classes, least), least).verdict == "answered"
    assert result_with(items_with(classes, least - 1), least - 1).verdict == "cannot tell"


@pytest.mark.parametrize(("classes", "count"), [(2, 16), (4, 20), (2, 48), (4, 48)])
def test_wrong_verdicts_are_rare(classes: int, count: int) -> None:
    """Add up binomial probabilities over all numbers of correct answers, for prompts that are independent."""
    items = items_with(classes, count)
    verdicts = [result_with(items, correct).verdict for correct in range(count + 1)]
    chance = 1 / classes
    limit = (1 + chance) / 2

    def probability(verdict: str, accuracy: float) -> float:
        chosen = [correct for correct, name in enumerate(verdicts) if name == verdict]
        return float(sum(binom.pmf(correct, count, accuracy) for correct in chosen))

    assert probability("answered", limit) <= 0.035 and probability("not answered", limit) <= 0.035
    assert probability("answered", chance) < 1e-4 and probability("not answered", 1.0) == 0
    if count == 48:
        assert probability("answered", 0.95) > 0.9 and probability("not answered", chance) > 0.9


def test_every_class_needs_half_of_its_prompts() -> None:
    items = items_with(4, 100)
    answers = {item.id: item.label for item in items}
    assert score_anchors(items, answers).text == "answered"
    last = [item for item in items if item.label == "class d"]
    wrong = {**answers, **{item.id: "class a" for item in last[:13]}}
    (result,) = score_anchors(items, wrong).results
    assert result.accuracy.low > 0.625 and result.recalls["class d"] == 12 / 25
    assert result.verdict == "cannot tell" and result.answered["class d"] == {"class a": 13, "class d": 12}


def test_unparsed_answers_are_wrong_and_groups_widen_the_interval() -> None:
    items = items_with(2, 40)
    answers = {item.id: item.label if number % 4 else "I see nothing." for number, item in enumerate(items)}
    (result,) = score_anchors(items, answers).results
    assert (result.accuracy.value, result.parsed, result.n, result.groups) == (0.75, 0.75, 40, 40)
    assert result.answered["class a"] == {"": 10, "class a": 10} and result.recalls == {"class a": 0.5, "class b": 1.0}
    pairs = [replace(item, group=f"group {number // 4}") for number, item in enumerate(items)]
    same = {item.id: item.label if number // 4 % 4 else "I see nothing." for number, item in enumerate(items)}
    (grouped,) = score_anchors(pairs, same).results
    assert grouped.groups == 10 and grouped.accuracy.high - grouped.accuracy.low > 1.5 * (
        result.accuracy.high - result.accuracy.low
    )


def test_verdicts_are_joined() -> None:
    def anchors(*verdicts: Any) -> Anchors:
        result = result_with(items_with(2, 4), 4)
        kinds = ("text", "presence", "position", "count")
        return Anchors(results=tuple(replace(result, kind=k, verdict=v) for k, v in zip(kinds, verdicts, strict=False)))

    assert (Anchors().text, Anchors().positive) == ("not run", "not run")
    no, yes, unknown = "not answered", "answered", "cannot tell"
    assert (anchors(no, yes, no, no).text, anchors(no, yes, no, no).positive) == (no, yes)
    assert anchors(yes, no, no, no).positive == no
    assert anchors(yes, no, unknown, no).positive == unknown
    one = score_anchors(items_with(2, 1), {"0": "class a"})
    assert one.text == "cannot tell" and math.isnan(one.results[0].accuracy.low)
    assert Anchors.from_dict(anchors(no, yes).to_dict()) == anchors(no, yes)


class Oracle:
    """Answers anchors correctly from the prompt, or from the squares on the image; counts what it was asked."""

    shows = "image"

    def __init__(self, items: Sequence[AnchorItem], *, takes_text: bool = True) -> None:
        self.by_text = {item.question.text: item.label for item in items if item.document is None}
        self.takes_text, self.pictures = takes_text, 0

    def prepare_text(self, questions: Sequence[str]) -> Mapping[str, Any]:
        if not self.takes_text:
            raise ModelError("Oracle takes no question without an image.")
        return {"labels": [self.by_text[question] for question in questions]}

    def prepare(self, questions: Sequence[str], images: Sequence[Any]) -> Mapping[str, Any]:
        self.pictures += len(images)
        return {"labels": ["no" for _ in images]}

    def generate(self, questions: Sequence[str], images: Sequence[Any], **options: Any) -> list[Generation]:
        assert len(questions) == len(options["inputs"]["labels"]) <= 40 and options["max_new_tokens"] == 16
        return [Generation(text, 1) for text in options["inputs"]["labels"]]


def asked(model: Oracle, data: Dataset) -> Anchors:
    loaded: LoadedModel = model  # type: ignore[assignment]
    question = ask("closed_set", data.spec.modality, data.spec.classes)
    return run_anchors(loaded, data, question, data.select(["test"]))


def test_a_model_is_asked_all_anchors(data: Dataset) -> None:
    question = ask("closed_set", data.spec.modality, data.spec.classes)
    items = [*text_anchors(data.spec, question), *mark_anchors(data.select(["test"]), data.spec)]
    model = Oracle(items)
    anchors = asked(model, data)
    assert [(result.kind, result.n) for result in anchors.results] == [
        ("text", 20),
        ("presence", 48),
        ("position", 48),
        ("count", 48),
    ]
    assert (anchors.text, anchors.positive, anchors.not_run) == ("answered", "not answered", {})
    assert model.pictures == 144 and anchors.results[1].recalls == {"yes": 0, "no": 1}

    without = asked(Oracle(items, takes_text=False), data)
    assert without.text == "not run" and without.not_run == {"text": "Oracle takes no question without an image."}
    bare = replace(data, spec=data.spec.model_copy(update={"findings": {}}))
    assert asked(Oracle(items), bare).not_run == {"text": NO_WORDINGS}
