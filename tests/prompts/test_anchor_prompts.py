"""Anchors: questions about findings in words and about squares drawn on images."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import draw_marks, mark_boxes
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import DataError
from medmllm_plugins.prompts.anchor_prompts import (
    MARK_KINDS,
    MarkKind,
    mark_anchors,
    mark_question,
    place_marks,
    text_anchors,
)
from medmllm_plugins.prompts.protocols import ask, ask_finding

SETS = dataset_specs()
FEWEST = {2: 8, 3: 4, 4: 3}
"""Wordings of each class that a verdict needs, by number of classes; with more than four as with four."""
CLASSES = {"benign": ["fibroadenoma"], "malignant": [], "normal": []}
FINDINGS = {
    "benign": ["a black oval", "an oval lump"],
    "malignant": ["a jagged lump", "a dark shadow"],
    "normal": ["bands of fat", "even layers"],
}


def declared(**changes: object) -> DatasetSpec:
    raw = {"name": "toy", "title": "Toy", "layout": "table", "modality": "scan", "classes": CLASSES}
    return parse_spec({**raw, "findings": FINDINGS, **changes}, "toy.yaml")


def documents(count: int) -> list[Document]:
    labels = tuple(CLASSES)
    return [Document(f"d{n}", f"{n}.png", labels[n % 4 % 3], f"g{n // 2}", "test") for n in range(count)]


@pytest.mark.parametrize("name", SETS)
def test_wordings_of_built_in_sets_name_no_class_and_differ(name: str) -> None:
    spec = SETS[name]
    wordings = [text for texts in spec.findings.values() for text in texts]
    classes = 2 if spec.kind == "multilabel" else len(spec.classes)
    assert min(map(len, spec.findings.values())) >= FEWEST[min(classes, 4)]
    for label, texts in spec.findings.items():
        # Sides of the body are not to be described in other words.
        words = set(re.findall(r"[a-z]{5,}", label.lower())) - {"right"}
        assert not [text for text in texts if words & set(re.findall(r"[a-z]+", text.lower()))]
    assert len({text.casefold() for text in wordings}) == len(wordings)
    for finding in spec.labels if spec.kind == "multilabel" else (None,):
        question = (
            ask("closed_set", spec.modality, spec.classes)
            if finding is None
            else ask_finding(spec.modality, finding, spec.classes[finding])
        )
        items = text_anchors(spec, question)
        assert {item.label for item in items} == set(question.classes)
        assert len({item.question.text for item in items}) == len({item.id for item in items}) == len(items)
        for item in items:
            assert item.group in item.question.text and item.question.text.endswith(question.text)
            assert not question.read(item.group).candidates, f"{item.group!r} reads as an answer"


def test_findings_are_checked() -> None:
    question = ask("closed_set", "scan", declared().classes)
    with pytest.raises(DataError, match="'fibroadenoma' is the name or a synonym"):
        spec = declared(findings={**FINDINGS, "normal": ["no fibroadenoma", "even layers"]})
        text_anchors(spec, question)
    for wrong, message in (
        ({**FINDINGS, "normal": ["bands of fat"]}, "at least two lines"),
        ({**FINDINGS, "normal": ["bands of fat", "Bands  of fat"]}, "twice"),
        ({**FINDINGS, "normal": ["bands of fat", "A jagged lump"]}, "twice"),
        ({"benign": FINDINGS["benign"]}, "for each of 'benign', 'malignant', 'normal'"),
        ("words", "map each class name"),
    ):
        with pytest.raises(DataError, match=message):
            declared(findings=wrong)
    assert text_anchors(declared(findings={}), question) == []


def test_findings_of_a_multilabel_set() -> None:
    with pytest.raises(DataError, match="'no finding'"):
        declared(kind="multilabel")
    spec = declared(kind="multilabel", findings={**FINDINGS, "no finding": ["clear lungs", "a slim heart"]})
    items = text_anchors(spec, ask_finding("scan", "malignant", ()))
    assert [(item.label, item.group) for item in items] == [
        ("yes", "a jagged lump"),
        ("yes", "a dark shadow"),
        ("no", "clear lungs"),
        ("no", "a slim heart"),
    ]


@pytest.mark.parametrize("count", [12, 48, 1000])
def test_controls_are_balanced_within_each_class(count: int) -> None:
    spec, every = declared(), documents(120)
    items = mark_anchors(every, spec, count=count)
    assert items == mark_anchors(list(reversed(every)), spec, count=count)
    assert {item.id for item in items} != {item.id for item in mark_anchors(every, spec, count=12, seed=1)}
    for kind in MARK_KINDS:
        some = [item for item in items if item.kind == kind]
        assert len(some) == min(count, len(every))
        cells = Counter((item.document.label, item.label) for item in some if item.document)
        for label in CLASSES:
            counts = [cells[label, answer] for answer in some[0].question.classes]
            assert max(counts) - min(counts) <= 1
        if count == 12:
            assert len({item.group for item in some}) == 12, "each group comes once before any comes again"
            assert Counter(item.document.label for item in some if item.document) == dict.fromkeys(CLASSES, 4)


@pytest.mark.parametrize("kind", MARK_KINDS)
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (224, 150), (90, 512)])
@pytest.mark.parametrize("background", [0, 128, 255])
def test_what_is_drawn_is_what_is_asked(kind: MarkKind, size: tuple[int, int], background: int) -> None:
    from scipy.ndimage import center_of_mass
    from scipy.ndimage import label as components

    generator = random.Random(3)
    for answer in mark_question(kind, declared()).classes:
        for _ in range(20):
            image = Image.new("RGB", size, (background,) * 3)
            marks = place_marks(kind, answer, generator)
            drawn = np.asarray(draw_marks(image, marks))
            assert not (np.asarray(image) != background).any(), "the original is left as it is"
            changed = (drawn != background).any(-1)
            if background == 255:  # the border is what changes, and it encloses each square
                changed = components(~changed)[0] > 1
            elif background == 0:
                assert drawn.max() == (255 if marks else 0)
            number = components(changed)[1]
            assert number == {"presence": int(answer == "yes"), "position": 1}.get(kind) or number == len(marks)
            if kind == "count":
                assert number == int(answer)
            if kind == "position":
                row, column = center_of_mass(changed)
                place = f"{'top' if row < size[1] / 2 else 'bottom'} {'left' if column < size[0] / 2 else 'right'}"
                assert place == answer
            for _, (left, top, right, bottom) in mark_boxes(size, marks):
                assert left >= 0 and right <= size[0] and top >= 0 and bottom <= size[1]
                assert min(right - left, bottom - top) >= 0.1 * min(size)


@pytest.mark.parametrize(
    ("kind", "answer", "label"),
    [
        ("presence", "Yes.", "yes"),
        ("presence", "There is no white square in the image.", "no"),
        ("position", "The white square is in the upper-left corner.", "top left"),
        ("position", "bottom right", "bottom right"),
        ("count", "2", "2"),
        ("count", "There are three white squares.", "3"),
    ],
)
def test_answers_about_squares_are_read(kind: MarkKind, answer: str, label: str) -> None:
    assert mark_question(kind, declared()).read(answer).label == label


def test_questions_end_with_the_sentence_of_the_task() -> None:
    spec = declared()
    options = {"presence": "yes, no", "position": "top left, top right, bottom left, bottom right", "count": "1, 2, 3"}
    for kind, names in options.items():
        text = mark_question(kind, spec, paraphrase=2).text  # type: ignore[arg-type]
        assert text.endswith(ask("closed_set", "scan", dict.fromkeys(names.split(", "), ()), paraphrase=2).text)
    volume = spec.model_copy(update={"dimensions": 3})
    assert mark_question("count", volume).text.startswith("How many white squares are in each slice?")
    finding = replace(documents(1)[0], label=("malignant",))
    assert len(mark_anchors([finding], declared(kind="multilabel", findings={}), finding="malignant")) == 3
