"""The answers to anchors as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from medmllm_plugins.prompts.anchor_prompts import AnchorItem
from medmllm_plugins.results.file_names import ANCHORS
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

COLUMNS: Final = ("kind", "document", "group", "question", "label", "predicted", "status", "answer")


def write_anchors(folder: Path, stem: str, items: Sequence[AnchorItem], answers: Mapping[str, str]) -> None:
    """Write ``TASK.anchors.csv``, a row for each anchor that was answered.

    Raises:
        OSError: the folder cannot be written.
    """
    rows = []
    for item in items:
        if item.id in answers:
            reading = item.question.read(answers[item.id])
            document = "" if item.document is None else item.document.id
            asked = (item.kind, document, item.group, item.question.text, item.label)
            rows.append((*asked, reading.label or "", reading.status, answers[item.id]))
    write_whole(folder / f"{stem}{ANCHORS}", csv_text(COLUMNS, rows))
