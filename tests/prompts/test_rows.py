"""Rows: every document, every variant, every finding, once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.prompts.task_rows import TaskRows, variants
from medmllm_plugins.prompts.task_settings import read_settings

CLASSES = {"a": [], "b": [], "c": []}
BASE = {"name": "x", "title": "X", "layout": "phantoms", "modality": "image", "classes": CLASSES}


def documents(labels: list[Any]) -> list[Document]:
    return [Document(f"d{i:03d}", str(i), label, f"g{i // 2}", "test") for i, label in enumerate(labels)]


def rows(labels: list[Any], dataset: dict[str, Any] | None = None, **fields: Any) -> TaskRows:
    return TaskRows(read_settings("t", {"medmllm": {"dataset": dataset or BASE, **fields}}), documents(labels))


def test_one_row_a_document() -> None:
    result = list(rows(["a", "b", "c"] * 30))
    assert len({row["id"] for row in result}) == 90
    assert all(row["id"] == row["document"] and row["finding"] == row["variant"] == "" for row in result)
    assert Counter(row["label"] for row in result) == {"a": 30, "b": 30, "c": 30}
    # Mixed, so that a limit takes a sample; the same on every machine.
    assert len({row["label"] for row in result[:10]}) == 3
    assert [row["id"] for row in result] == [row["id"] for row in rows(["a", "b", "c"] * 30)]


def test_no_path_is_in_a_row() -> None:
    for row in rows(["a", "b"]):
        assert set(row) == {"id", "document", "label", "group", "fold", "finding", "variant", "answers"}


def test_varied_order_asks_every_document_in_every_order() -> None:
    result = rows(["a", "b", "c"], order="varied")
    table = list(result)
    assert len(table) == 9 and len({row["id"] for row in table}) == 9
    assert [row["variant"] for row in table[:3]] == ["order 0", "order 1", "order 2"]  # a document's rows together
    texts = {result.question(row).text for row in table}
    assert {text.split(": ")[1].split(".")[0] for text in texts} == {"a, b, c", "b, c, a", "c, a, b"}
    assert all(row["answers"] == ["a", "b", "c"] for row in table)  # scores stay in class order


def test_letters_move_with_the_order() -> None:
    result = rows(["a", "b", "c"], order="varied", protocol="letter")
    answers = {row["variant"]: row["answers"] for row in result}
    assert answers == {"order 0": ["A", "B", "C"], "order 1": ["C", "A", "B"], "order 2": ["B", "C", "A"]}


def test_all_wordings() -> None:
    result = rows(["a", "b", "c"], paraphrase="all")
    assert len(list(result)) == 12
    assert len({result.question(row).text for row in result}) == 4


def test_one_question_a_finding() -> None:
    dataset = {**BASE, "kind": "multilabel"}
    result = rows([("a",), (), ("a", "c")], dataset)
    table = {row["id"]: row["label"] for row in result}
    assert len(table) == 9
    assert table["d000 | a"] == "yes" and table["d000 | b"] == "no"
    assert table["d001 | a"] == table["d001 | b"] == table["d001 | c"] == "no"
    assert table["d002 | a"] == table["d002 | c"] == "yes"
    assert all(row["answers"] == ["yes", "no"] for row in result)
    assert {result.question(row).text for row in result} == {
        f"Does this image show {name}? Answer with yes or no only." for name in CLASSES
    }


@pytest.mark.parametrize(("classes", "count"), [(2, 2), (5, 5), (6, 5), (11, 5)])
def test_orders_are_cyclic_up_to_five_classes(classes: int, count: int) -> None:
    dataset = {**BASE, "classes": {f"class {number}": [] for number in range(classes)}}
    result = variants(read_settings("t", {"medmllm": {"dataset": dataset, "order": "varied"}}))
    assert len(result) == count and result[0].order == tuple(range(classes))
