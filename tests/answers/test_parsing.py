"""The answer parser on a table of answers as models write them, each read by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medmllm_plugins.answers.parsing import Answer, parse_answer
from medmllm_plugins.errors import OptionError

TABLE = yaml.safe_load((Path(__file__).parent / "read_by_hand.yaml").read_text(encoding="utf-8"))
BUSI = TABLE["classes"]["busi"]
LETTERS = {"A": "benign", "B": "malignant", "C": "normal"}


@pytest.mark.parametrize(("classes", "text", "status", "label"), TABLE["texts"], ids=lambda value: str(value)[:60])
def test_reads_as_a_person_does(classes: str, text: str, status: str, label: str | None) -> None:
    answer = parse_answer(text, TABLE["classes"][classes])
    assert (answer.status, answer.label) == (status, label)


@pytest.mark.parametrize(("text", "status", "label"), TABLE["with_letters"], ids=lambda value: str(value)[:60])
def test_reads_letters_where_the_prompt_listed_them(text: str, status: str, label: str | None) -> None:
    answer = parse_answer(text, BUSI, options=LETTERS)
    assert (answer.status, answer.label) == (status, label)


@pytest.mark.parametrize("text", ["B", "(B)", "Answer: B", "B.", "option B"])
def test_letters_mean_nothing_without_options(text: str) -> None:
    assert parse_answer(text, BUSI) == Answer("out_of_list", None, ())


def test_candidates_stand_in_class_order() -> None:
    assert parse_answer("normal, then malignant, then benign", BUSI).candidates == ("benign", "malignant", "normal")


def test_a_phrase_of_two_classes_is_ambiguous() -> None:
    shared = {"left": ("mass",), "right": ("mass",)}
    assert parse_answer("a mass", shared) == Answer("ambiguous", None, ("left", "right"))


@pytest.mark.parametrize(
    "text",
    [
        "The lung shows a small opacity in the lobe. ",
        "benign ",
        "not ",
        "(",
        "<think>",
        r"\boxed{",
        "<answer>",
        "Answer: ",
        "Is it benign? No. ",
        "良",
        "\n",
        "ﷺ",
    ],
)
def test_a_long_text_is_read(text: str) -> None:
    # Reading in the square of the length would take hours already.
    answer = parse_answer(text * (200_000 // len(text)), BUSI, options=LETTERS)
    assert answer.status == ("parsed" if text == "benign " else "out_of_list")


def test_a_class_no_text_could_name_is_refused() -> None:
    with pytest.raises(OptionError, match="letter or digit"):
        parse_answer("x", {"+": (), "positive": ()})


def test_an_option_without_a_class_is_refused() -> None:
    with pytest.raises(OptionError, match="to name one of"):
        parse_answer("A", BUSI, options={"A": "cyst"})
