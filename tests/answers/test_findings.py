"""Yes/no answers about one finding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.answers.yes_no import parse_finding

SYNONYMS = ("collapsed lung",)

ANSWERS = [
    ("yes", "yes"),
    ("Yes.", "yes"),
    ("**Yes**", "yes"),
    ("Yes, there is a large pneumothorax on the left.", "yes"),
    ("Answer: yes", "yes"),
    ("The answer is no.", "no"),
    ("The answer is: No", "no"),
    ("No", "no"),
    ("no\n", "no"),
    ("No, there is no pneumothorax.", "no"),
    ("No evidence of pneumothorax.", "no"),
    ("There is no pneumothorax.", "no"),
    ("No pneumothorax", "no"),
    ("There is a pneumothorax in the right apex", "yes"),
    ("Pneumothorax is present.", "yes"),
    ("The image shows a collapsed lung.", "yes"),
    ("Pneumothorax is not seen.", "no"),
    ("The lungs are clear without pneumothorax.", "no"),
    ("<think>Could be a pneumothorax. Yes?</think>No", "no"),
    ("<think>no</think><answer>Yes</answer>", "yes"),
    ("So \\boxed{Yes}", "yes"),
    ("(Yes)", "yes"),
    ("是", "yes"),
    ("否。", "no"),
    ("No. There is an effusion.", "no"),
]
NOT_PARSED = [
    ("", "out_of_list"),
    ("   ", "out_of_list"),
    ("yes or no", "out_of_list"),
    ("No change since the last examination.", "out_of_list"),
    ("The heart is enlarged.", "out_of_list"),
    ("A normal chest.", "out_of_list"),
    ("maybe", "out_of_list"),
    ("<think>yes, it is", "out_of_list"),
    ("I cannot provide medical advice.", "refusal"),
    ("I'm sorry, but I can't help with that.", "refusal"),
    ("Yes. No.", "ambiguous"),
    ("Yes, there is no pneumothorax.", "ambiguous"),
    ("No, the image shows a pneumothorax.", "ambiguous"),
    ("No pneumothoraces", "out_of_list"),
    ("yesterday", "out_of_list"),
    ("Nothing", "out_of_list"),
    ("Note: see above", "out_of_list"),
    ("Is there a pneumothorax?", "out_of_list"),
    ("possible pneumothorax", "out_of_list"),
    ("Pneumothorax cannot be ruled out.", "out_of_list"),
    ("If there were a pneumothorax, one would see a line.", "out_of_list"),
    ("I am not sure whether there is a pneumothorax", "refusal"),
    ("The question asks whether pneumothorax is visible.", "out_of_list"),
]


@pytest.mark.parametrize(("text", "label"), ANSWERS)
def test_answers(text: str, label: str) -> None:
    answer = parse_finding(text, "pneumothorax", SYNONYMS)
    assert (answer.status, answer.label) == ("parsed", label)


@pytest.mark.parametrize(("text", "status"), NOT_PARSED)
def test_no_guess(text: str, status: str) -> None:
    answer = parse_finding(text, "pneumothorax", SYNONYMS)
    assert (answer.status, answer.label) == (status, None)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    answer = parse_finding(text, "pneumothorax")
    assert (answer.label is not None) == (answer.status == "parsed")
    assert answer.label in (None, "yes", "no")
