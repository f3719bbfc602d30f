"""Which column of a table says the folds: it is used, asked about or named, and never passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from medmllm_plugins.data.loading.column_guess import Columns, columns
from medmllm_plugins.errors import OptionError


def guess(
    values: Sequence[str],
    name: str = "split",
    fold: str | None = None,
    names: Mapping[str, str] | None = None,
    **others: Sequence[str],
) -> Columns:
    rows = [
        {
            "image": f"{index}.png",
            "label": "ab"[index % 2],
            name: value,
            **{key: row[index] for key, row in others.items()},
        }
        for index, value in enumerate(values)
    ]
    return columns(
        rows, "image", label="label", group=None, fold=fold, classes=(), multilabel=False, fold_names=names or {}
    )


@pytest.mark.parametrize(
    "name", ["split", "Split", "fold", "data_split", "DatasetSplit", "set", "subset", "Phase", "usage"]
)
@pytest.mark.parametrize(
    "values", [["train", "dev", "test"], ["Training", "VALID", "hold-out"], ["train", "tune", "eval"]]
)
def test_words_for_folds_are_used(name: str, values: list[str]) -> None:
    guessed = guess(values, name)
    assert guessed.fold == name
    (note,) = [note for note in guessed.notes if note.startswith("folds: ")]
    assert f"'{name}'" in note and ("dev = validation" in note or "dev" not in values)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("split", ["train", "dve", "test"], r"got 'dve' in 1 row.*--fold-map dve=FOLD"),
        ("split", ["train", "", "test"], r"Fill in the empty cells, or"),
        ("split", ["A", "B", "C"], r"--fold-map A=FOLD,B=FOLD,C=FOLD"),
        ("set", ["train", "external", "test"], r"got 'external' in 1 row"),
        ("fold", list("01234"), r"as of cross-validation.*--fold-map 0=train,1=train,2=train,3=validation,4=test"),
        ("fold", list("12"), r"--fold-map 1=train,2=test"),
        ("kfold_split", list("0123"), r"numbers, as of cross-validation"),
    ],
)
def test_other_words_are_asked_about(name: str, values: list[str], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        guess(values, name)
    assert "--fold none" in str(caught.value) and len(str(caught.value)) < 600
    assert guess(values, name, fold="none").fold is None


def test_no_map_is_suggested_for_empty_cells() -> None:
    with pytest.raises(OptionError, match=r"Fill in the empty cells, or give --fold none") as caught:
        guess(["train", "", "test"])
    assert "--fold-map" not in str(caught.value)  # which cannot name them
    with pytest.raises(OptionError, match=r"Fill in the empty cells\. Say .*--fold-map dve=FOLD "):
        guess(["train", "", "dve", "test"])


def test_the_answer_to_the_question_is_taken() -> None:
    names = {"0": "train", "1": "train", "2": "validation", "3": "test"}
    assert guess(list("0123"), names=names).fold == "split"
    assert guess(["train", "dve"], names={"dve": "validation"}).fold == "split"
    assert guess(list("0123"), "number", fold="number", names=names).fold == "number"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("phase", ["arterial", "venous", "arterial"]),
        ("subset", ["a", "b", "c"]),
        ("purpose", ["train", "test", "train"]),  # by its content
    ],
)
def test_a_column_that_only_looks_like_folds_is_named(name: str, values: list[str]) -> None:
    guessed = guess(values, name)
    assert guessed.fold is None
    assert any(f"the column '{name}' looks like one of folds and is not used" in note for note in guessed.notes)


def test_a_map_may_write_values_in_another_case() -> None:
    assert guess(["a", "b", "c"], "split", "split", {"A": "train", "B": "test", "c": "none"}).fold == "split"


def test_of_two_columns_the_one_that_is_understood_is_used_and_the_other_named() -> None:
    guessed = guess(list("012"), "fold", split=["train", "val", "test"])
    assert guessed.fold == "split"
    assert any("the column 'fold' looks like one of folds" in note for note in guessed.notes)


@pytest.mark.parametrize(
    ("fold", "names", "says"),
    [
        ("split", {"nothing": "test"}, "--fold-map to name values of the column 'split', got 'nothing'"),
        ("none", {"dev": "test"}, "got --fold none"),
    ],
)
def test_a_map_that_does_not_go_is_refused(fold: str, names: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        guess(["train", "test"], fold=fold, names=names)


def test_a_map_without_a_column_is_refused() -> None:
    with pytest.raises(OptionError, match="Name the column with --fold"):
        guess(["x", "y"], "hospital", names={"x": "test"})


def test_ordinary_columns_are_left_alone() -> None:
    guessed = guess([f"2020-01-{day:02}" for day in range(1, 31)], "set_date", offset=["1"] * 30, asset=["x", "y"] * 15)
    assert guessed.fold is None and not [note for note in guessed.notes if note.startswith("folds")]
