"""Protocols: the question, the answers scored, and the reading agree with each other in any option order."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.errors import OptionError
from medmllm_plugins.prompts.protocols import Protocol, ask, ask_finding, orders
from medmllm_plugins.prompts.wording import PARAPHRASES

CLASSES = {"benign": ("non-malignant",), "malignant": ("cancer",), "normal": ("healthy",)}


def test_default_question_word_for_word() -> None:
    question = ask("closed_set", "breast ultrasound image", CLASSES)
    assert question.text == (
        "Classify this breast ultrasound image into one of the following categories: benign, malignant, normal. "
        "Answer with the category name only."
    )
    assert question.labels == ("benign", "malignant", "normal")


def test_letter_question_word_for_word() -> None:
    question = ask("letter", "image", CLASSES, order=(2, 0, 1))
    assert question.text == (
        "Which category does this image belong to?\nA. normal\nB. benign\nC. malignant\n"
        "Answer with the letter of the option only."
    )
    assert question.options == {"A": "normal", "B": "benign", "C": "malignant"}
    assert question.labels == ("B", "C", "A")  # still in class order
    assert question.read("C").label == "malignant"
    assert question.read("(A)").label == "normal"
    assert question.read("B. benign").label == "benign"
    assert question.read("A. benign").status == "ambiguous"


def test_open_question_names_no_class() -> None:
    for paraphrase in range(PARAPHRASES + 1):
        question = ask("open", "breast ultrasound image", CLASSES, paraphrase=paraphrase)
        assert not any(word in question.text.lower() for name in CLASSES for word in (name, *CLASSES[name]))
        assert question.read("It is a cancer.").label == "malignant"


@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_wordings_differ_and_leave_nothing_unfilled(protocol: str) -> None:
    texts = {
        ask(protocol, "image", CLASSES, paraphrase=paraphrase).text  # type: ignore[arg-type]
        for paraphrase in range(PARAPHRASES + 1)
    }
    texts |= {ask_finding("image", "edema", (), paraphrase=paraphrase).text for paraphrase in range(PARAPHRASES + 1)}
    assert len(texts) == 2 * (PARAPHRASES + 1) and PARAPHRASES >= 3
    assert not any("{" in text or "}" in text for text in texts)


@pytest.mark.parametrize("paraphrase", [-1, PARAPHRASES + 1])
def test_no_such_paraphrase(paraphrase: int) -> None:
    with pytest.raises(OptionError, match="paraphrase"):
        ask("closed_set", "image", CLASSES, paraphrase=paraphrase)


def test_more_classes_than_letters() -> None:
    with pytest.raises(OptionError, match="at most 26 classes"):
        ask("letter", "image", {f"class {number}": () for number in range(27)})


def test_finding_question() -> None:
    question = ask_finding("chest X-ray", "pleural effusion", ("effusion",))
    assert question.text == "Does this chest X-ray show pleural effusion? Answer with yes or no only."
    assert question.labels == ("yes", "no")
    assert question.read("No effusion is seen.").label == "no"


@given(st.integers(2, 30), st.integers(0, 5))
def test_orders_are_permutations(classes: int, seed: int) -> None:
    result = orders(classes, seed)
    assert result[0] == tuple(range(classes))
    assert len(set(result)) == len(result) == min(classes, 5)
    assert all(sorted(order) == list(range(classes)) for order in result)
    assert result == orders(classes, seed)
    if classes <= 5:  # every class stands at every place once
        assert all(len({order[place] for order in result}) == classes for place in range(classes))


@given(st.permutations(range(3)), st.sampled_from(sorted(CLASSES)))
def test_any_order_reads_back(order: list[int], name: str) -> None:
    for protocol in get_args(Protocol):
        question = ask(protocol, "image", CLASSES, order=order)
        label = question.labels[list(CLASSES).index(name)]
        assert question.read(label).label == name
