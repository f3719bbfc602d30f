"""Words in a split column: which fold each means, and that nothing is guessed."""

from __future__ import annotations

import pytest

from medmllm_plugins.data.core.fold_names import fold_of


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        ("train", "train Training TRAIN trainset train_set"),
        ("validation", "val valid validation dev Dev DEVELOPMENT tune tuning val-set devset"),
        ("test", "test Testing holdout hold-out Hold_Out held-out eval evaluation test-set"),
    ],
)
def test_words_for_folds(fold: str, words: str) -> None:
    assert {fold_of(word, {}) for word in words.split()} == {fold}
    assert fold_of("training set", {}) == "train"


@pytest.mark.parametrize("word", ["", "0", "1", "unlabeled", "external", "set", "trainval", "tests are fun", "none"])
def test_other_words_are_not_guessed(word: str) -> None:
    assert fold_of(word, {}) is None


def test_what_the_user_says_comes_first() -> None:
    names = {"dev": "test", "external": "none", "0": "train"}
    assert [fold_of(word, names) for word in ("dev", "DEV", "External", "0", "val")] == [
        "test", "test", "none", "train", "validation",
    ]  # fmt: skip
