"""The blind controls and the few-shot examples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.image_controls import blank, partners
from medmllm_plugins.data.loading.few_shot import FewShotExamples
from medmllm_plugins.errors import DataError


def documents(groups: list[int], fold: Fold = "test") -> list[Document]:
    return [Document(f"{fold}-{i}", str(i), "ab"[i % 2], f"g{group}", fold) for i, group in enumerate(groups)]


def test_blank_is_grey_and_of_the_same_size() -> None:
    image = blank(Image.new("RGB", (5, 3), (255, 0, 0)))
    assert image.size == (5, 3) and image.getcolors() == [(15, (128, 128, 128))]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60))
def test_every_image_goes_to_another_group_once(groups: list[int]) -> None:
    asked = documents(groups)
    if 2 * max(Counter(groups).values()) > len(groups):
        with pytest.raises(DataError, match="more than half"):
            partners(asked)
        return
    result = partners(asked)
    assert set(result) == {document.id for document in asked}
    assert len({other.id for other in result.values()}) == len(asked)
    assert all(result[document.id].group != document.group for document in asked)
    assert result == partners(asked[::-1])


def test_examples_take_the_classes_in_turn() -> None:
    shots = FewShotExamples(
        [*documents([1, 2, 3, 4], "train"), *documents([9], "test")], "ab", lambda shot: str(shot.label)
    )
    asked = documents([9])[0]
    result = shots.before(asked, 4)
    assert [shot.label for shot in result] == ["a", "b", "a", "b"]
    assert all(shot.fold == "train" for shot in result)
    assert shots.before(asked, 2) == result[:2]
    with pytest.raises(DataError, match="Lower --num_fewshot"):
        shots.before(asked, 5)


def test_no_example_of_the_group_asked_about() -> None:
    shots = FewShotExamples(documents([1, 1, 2, 2], "train"), "ab", lambda shot: str(shot.label))
    assert {shot.group for shot in shots.before(documents([1])[0], 2)} == {"g2"}
