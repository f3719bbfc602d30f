"""Properties of the answer parser that hold for every text."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medmllm_plugins.answers.parsing import parse_answer

CLASS_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "busi": {
        "benign": ("non-malignant", "not malignant", "noncancerous", "non-cancerous"),
        "malignant": ("malignancy", "cancerous", "carcinoma"),
        "normal": ("healthy", "no lesion", "no mass", "no abnormality"),
    },
    "covid": {
        "COVID": ("COVID-19", "COVID19", "SARS-CoV-2", "coronavirus"),
        "Non-COVID": ("NonCOVID", "Non-COVID-19", "not COVID", "no COVID"),
    },
    "phantoms": {
        "round mass": ("smooth mass", "oval mass"),
        "spiculated mass": ("spiky mass", "star-shaped mass"),
        "textured patch": ("texture patch", "reticular patch"),
        "no finding": ("no findings", "clear"),
    },
    "chest": {"NORMAL": (), "PNEUMONIA": ()},
    "abnormal": {"normal": (), "abnormal": ()},
    "negated": {"pneumonia": (), "no pneumonia": ()},
    "grades": {str(grade): () for grade in range(5)},
    "skin": {"basal cell carcinoma": ("BCC",), "Bowen's disease": (), "melanoma": (), "nevus (mole)": ("naevus",)},
    "chinese": {"良性": (), "恶性": ("恶性肿瘤",)},
}
TRANSLATED = {"benigno", "benigna", "benigni", "benigne", "benignos", "benignas", "normale", "normales", "normali"} | {
    "normaler",
    "normalem",
    "normals",
    "benigns",
    "malignants",
}
LETTERS = {"A": "benign", "B": "malignant", "C": "normal"}
# fmt: off
SCRAPS = [
    "benign", "malignant", "normal", "COVID", "Non-COVID", "pneumonia", "0", "2", "no", "not", "n't", "without",
    "and", "or", "but", ",", ".", ";", ":", "?", "(", ")", "[", "]", "is", "seen", "excluded", "unlikely", "the",
    "image", "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "Answer:", "A", "(B)", "良性", "不",
    "I", "can't", "<|im_end|>",
]
# fmt: on

sets = st.sampled_from(sorted(CLASS_SETS)).map(CLASS_SETS.__getitem__)
texts = st.text(max_size=200) | st.lists(st.sampled_from([*SCRAPS, "\n"]), max_size=25).map(" ".join)
wrap = st.text(alphabet=" \n\t\"'*_`.!:", max_size=6)
recase = st.sampled_from([str, str.upper, str.lower, str.title, str.swapcase])


@settings(max_examples=100)
@given(text=texts, classes=sets, letters=st.booleans())
def test_every_text_gives_a_consistent_answer(text: str, classes: dict[str, tuple[str, ...]], letters: bool) -> None:
    options = dict(zip("ABCDE", classes, strict=False)) if letters else None
    answer = parse_answer(text, classes, options=options)
    names = list(classes)
    assert (answer.status == "parsed") == (answer.label is not None)
    assert answer.label is None or (answer.label in classes and answer.candidates == (answer.label,))
    assert (answer.status == "ambiguous") == (len(answer.candidates) >= 2)
    assert list(answer.candidates) == [name for name in names if name in answer.candidates]


@settings(max_examples=100)
@given(data=st.data(), classes=sets, before=wrap, after=wrap, case=recase)
def test_a_bare_class_name_is_read_as_itself(data, classes, before, after, case) -> None:
    name = data.draw(st.sampled_from(list(classes)))
    assert parse_answer(before + case(name) + after, classes).label == name


@settings(max_examples=100)
@given(data=st.data(), classes=sets)
def test_every_synonym_is_read_as_its_class(data, classes) -> None:
    name = data.draw(st.sampled_from(list(classes)))
    phrase = data.draw(st.sampled_from([name, *classes[name]]))
    joint = data.draw(st.sampled_from([" ", "-", "_", "\u2011", " - "]))
    assert parse_answer(f"Answer: {phrase.replace(' ', joint)}", classes).label == name


@settings(max_examples=100)
@given(reasoning=texts, text=texts, classes=sets, tag=st.sampled_from(["think", "thinking", "THINK"]))
def test_a_reasoning_block_changes_nothing(reasoning: str, text: str, classes, tag: str) -> None:
    # What stands between two blocks was said aloud.
    assume(re.search(r"(?is)</think>.*<think>", reasoning) is None)
    block = f"<{tag}>{reasoning}</{tag}>\n"
    assert parse_answer(block + text, classes, options=None) == parse_answer(text, classes)


@settings(max_examples=50)
@given(text=texts, reasoning=st.text(alphabet=string.ascii_letters + " ,.", max_size=80))
def test_unclosed_reasoning_is_never_read(text: str, reasoning: str) -> None:
    answer = parse_answer(f"{text}<think>{reasoning} benign", CLASS_SETS["busi"], options=LETTERS)
    assert (answer.status, answer.candidates) == ("out_of_list", ())


@settings(max_examples=100)
@given(data=st.data(), classes=sets, case=recase)
def test_two_names_joined_by_or_are_ambiguous(data, classes, case) -> None:
    first, second = data.draw(st.permutations(list(classes)))[:2]
    answer = parse_answer(case(f"{first} or {second}"), classes)
    assert answer.status == "ambiguous"
    assert set(answer.candidates) == {first, second}


@settings(max_examples=100)
@given(text=st.text(alphabet=string.ascii_letters + " .,-\n", max_size=200))
def test_text_without_a_class_word_is_never_parsed(text: str) -> None:
    busi = CLASS_SETS["busi"]
    words = {word for name, synonyms in busi.items() for phrase in (name, *synonyms) for word in phrase.split()}
    assume(not any(word in text.lower() for word in words - {"no", "not"}))
    assert parse_answer(text, busi).status in ("out_of_list", "refusal")


@settings(max_examples=60)
@given(data=st.data(), letters=st.text(alphabet=string.ascii_letters, min_size=1, max_size=4))
def test_a_name_inside_a_longer_word_is_never_read(data, letters: str) -> None:
    # Neither in translation: "benigno" is Spanish, "normale" French.
    name = data.draw(st.sampled_from(["benign", "malignant", "normal"]))
    assume(f"{name}{letters}".lower() not in TRANSLATED)
    more = " The image was taken with a common device." * 6  # slips of the keyboard are corrected in short answers
    assert parse_answer(f"It is {letters}{name}.{more}", CLASS_SETS["busi"]).status == "out_of_list" or (
        f"{letters}{name}".lower() == "nonmalignant"
    )
    assert parse_answer(f"It is {name}{letters}.{more}", CLASS_SETS["busi"]).status == "out_of_list"


@settings(max_examples=100)
@given(
    words=st.lists(st.sampled_from([s for s in SCRAPS if s.isascii()]) | st.text(string.printable, max_size=8)),
    case=recase,
    classes=sets,
)
def test_case_does_not_matter(words: list[str], case, classes) -> None:
    text = " ".join(words)
    options = dict(zip("ABCDE", classes, strict=False))
    assert parse_answer(case(text), classes, options=options) == parse_answer(text, classes, options=options)


@pytest.mark.parametrize("negator", ["not", "no evidence of", "without", "negative for", "absence of", "unlikely"])
@settings(max_examples=30)
@given(data=st.data(), name=st.sampled_from(["round mass", "spiculated mass", "textured patch"]))
def test_a_negated_name_is_no_vote(negator: str, data, name: str) -> None:
    other = data.draw(st.sampled_from(["round mass", "spiculated mass", "textured patch"]).filter(lambda o: o != name))
    classes = CLASS_SETS["phantoms"]
    assert parse_answer(f"The image shows {negator} {name}.", classes).status == "out_of_list"
    assert parse_answer(f"The image shows {negator} {name}. It shows a {other}.", classes).label == other
