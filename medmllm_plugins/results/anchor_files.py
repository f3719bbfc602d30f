"""The answers to anchors as a table, and the anchors of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from medmllm_plugins.errors import DataError
from medmllm_plugins.prompts.anchor_prompts import AnchorItem
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.file_names import ANCHORS, PROBES
from medmllm_plugins.results.probe_records import ProbeAnalysis
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


def read_anchors(folder: Path, stem: str) -> Anchors | None:
    """Return the anchors in a task's ``TASK.probes.json``; ``None`` where it holds none.

    Raises:
        DataError: the file is damaged, or of a newer version.
    """
    path = folder / f"{stem}{PROBES}"
    try:
        return ProbeAnalysis.from_dict(json.loads(path.read_text(encoding="utf-8"))).anchors
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: expected the results of probes, got {error}. Run the task again.") from error
