"""The answer parser on 600 answers written by hand in the manner of medical multimodal LLMs.

``plain_answers.jsonl`` has awkward answers at their natural rate, ``difficult_answers.jsonl`` leans to them: negations,
hypotheticals, advice, differentials, corrections, other languages, misspellings. Their labels are their writer's, who
did not see the parser. The rules were finished before the plain ones were read for the first time; of the difficult
ones, they were written after seeing which were misread.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from medmllm_plugins.answers.parsing import parse_answer
from medmllm_plugins.data.loading.catalogue import dataset_specs

FOLDER = Path(__file__).parent


def answers(name: str) -> list[tuple[str, str | None, str | None]]:
    """Return dataset, written label and read label of each answer."""
    specs = dataset_specs()
    rows = [json.loads(line) for line in (FOLDER / f"{name}_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        (row["dataset"], row["label"], parse_answer(row["text"], specs[row["dataset"]].classes).label) for row in rows
    ]


@pytest.mark.parametrize(("name", "precision", "share_read"), [("plain", 0.98, 0.98), ("difficult", 0.98, 0.88)])
def test_answers_are_read_as_a_person_reads_them(name: str, precision: float, share_read: float) -> None:
    rows = answers(name)
    assert len(rows) == 300
    read = [(label, parsed) for _, label, parsed in rows if parsed is not None]
    assert sum(label == parsed for label, parsed in read) / len(read) >= precision
    readable = [(label, parsed) for _, label, parsed in rows if label is not None]
    assert sum(label == parsed for label, parsed in readable) / len(readable) >= share_read


def test_no_class_is_read_less_often_than_another() -> None:
    readable, read = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for dataset, label, parsed in answers("plain"):
        if label is not None:
            readable[dataset, label] += 1
            read[dataset, label] += label == parsed
    by_dataset: dict[str, list[float]] = {}
    for (dataset, label), count in readable.items():
        if count >= 15:  # of fewer, one answer is more than five points
            by_dataset.setdefault(dataset, []).append(read[dataset, label] / count)
    assert {"busi", "chest_xray", "covid19_ct"} <= set(by_dataset)
    for shares in by_dataset.values():
        assert max(shares) - min(shares) <= 0.05
