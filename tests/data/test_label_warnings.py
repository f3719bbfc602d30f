"""Doubts about labels: near-identical names, classes that a fold lacks, one picture with two labels."""

from __future__ import annotations

import time

import pytest

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.label_warnings import label_warnings, same_spelling, similar_spelling, two_labels


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Normal", "normal"),
        ("COVID-19", "covid 19"),
        ("Röntgen", "rontgen"),
        ("а mass", "a mass"),  # the first begins with a Cyrillic letter
        ("mass\u200b", "mass"),
        ("ground glass", "ground\u00a0glass"),
        ("ground-glass", "ground–glass"),
    ],
)
def test_what_only_looks_different_is_the_same(first: str, second: str) -> None:
    assert same_spelling(first, second) and similar_spelling(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Covd", "Covid"),
        ("cyst", "cysts"),
        ("metastasis", "metastases"),
        ("benign", "bengin"),
        ("malignant", "malignent"),
        ("Covd19", "Covid19"),
    ],
)
def test_a_mistyped_letter_is_similar(first: str, second: str) -> None:
    assert similar_spelling(first, second) and similar_spelling(second, first)
    assert not same_spelling(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("T1", "T2"),
        ("grade 1", "grade 2"),
        ("grade 1", "grade 10"),
        ("stage I", "stage II"),
        ("stage IV", "stage V"),
        ("type a", "type b"),
        ("BI-RADS 4a", "BI-RADS 4b"),
        ("BIRADS4A", "BIRADS4B"),
        ("pT2a", "pT2b"),
        ("stage IIIA", "stage IIIB"),
        ("typical", "atypical"),
        ("symptomatic", "asymptomatic"),
        ("benign", "malignant"),
        ("normal", "abnormal"),
        ("HER2+", "HER2-"),
        ("ER+", "ER−"),
        ("<5 mm", ">5 mm"),
        ("1.5", "15"),
        ("+", "-"),
        ("阳性", "阴性"),
    ],
)
def test_names_that_mean_different_things_are_not(first: str, second: str) -> None:
    assert not similar_spelling(first, second) and not similar_spelling(second, first)
    assert not same_spelling(first, second)


def spec(*labels: str) -> DatasetSpec:
    return DatasetSpec(name="x", title="X", layout="table", modality="image", classes={label: () for label in labels})


def documents(*rows: tuple[str, Fold, int]) -> list[Document]:
    """So many documents of a label in a fold, each of a group of its own."""
    return [
        Document(f"{label}{fold}{index}", "x", label, f"{label}{fold}{index}", fold)
        for label, fold, count in rows
        for index in range(count)
    ]


SOUND = documents(
    ("Covid", "train", 60), ("Covid", "validation", 20), ("Covid", "test", 30),
    ("normal", "train", 60), ("normal", "validation", 20), ("normal", "test", 30),
)  # fmt: skip


def test_sound_labels_are_not_warned_of() -> None:
    assert label_warnings(spec("Covid", "normal"), SOUND) == []


def test_a_mistyped_class_of_one_image() -> None:
    texts = label_warnings(spec("Covid", "Covd", "normal"), [*SOUND, *documents(("Covd", "train", 1))])
    assert texts == [
        "Classes with almost the same name: 'Covid' (110) and 'Covd' (1). If they are one class, correct the labels, "
        "otherwise a model is asked to distinguish them.",
        "Only one image of 'Covd': it is in one fold, so the others lack that class.",
        "No 'Covd' in the validation fold: settings are chosen without it.",
        "No 'Covd' in the test fold: nothing is measured of it.",
    ]


def test_a_class_of_one_patient() -> None:
    rare = [Document(f"rare{index}", "x", "rare", "one patient", "test") for index in range(3)]
    texts = label_warnings(spec("Covid", "normal", "rare"), [*SOUND, *rare])
    assert "All images of 'rare' belong to one group" in texts[0]
    assert "No 'rare' in the train fold: probes and reference classifiers cannot learn it." in texts


def test_a_small_test_fold_tells_the_width_of_its_intervals() -> None:
    few = documents(("a", "train", 9), ("b", "train", 9), ("a", "test", 6), ("b", "test", 6))
    assert label_warnings(spec("a", "b"), few) == [
        "The test fold has 12 images: a 95% interval of accuracy extends up to 28 points to either side."
    ]


def test_one_content_with_two_labels() -> None:
    contents, names = ["p", "q", "p", "r", "r"], ["1", "2", "3", "4", "5"]
    assert two_labels(contents, names, [("a",), ("a",), ("a",), ("b",), ("b",)], "image") == []
    (warning,) = two_labels(contents, names, [("a",), ("a",), ("b",), ("b",), ("b",)], "volume")
    assert warning.startswith(
        "One volume has more than one label: the same content is in several files, 1 (a) = 3 (b)."
    )
    (warning,) = two_labels(["p"] * 400, [str(n) for n in range(400)], [(str(n),) for n in range(400)], "image")
    assert len(warning) < 300
    (warning,) = two_labels(["p", "p", "q", "q"], ["1", "2", "3", "4"], [("a",), (), ("a",), ("b",)], "image")
    assert warning.startswith("2 images have more than one label") and "2 (no finding)" in warning


def test_thousands_of_classes_are_no_matter() -> None:
    labels = [f"class {chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676)}" for n in range(3000)]
    began = time.process_time()
    texts = label_warnings(spec(*labels, "CLASS AAA"), documents(*((label, "test", 1) for label in labels)))
    assert time.process_time() - began < 2
    assert "'class aaa' (1) and 'CLASS AAA' (0)" in texts[0] and max(map(len, texts)) < 500
