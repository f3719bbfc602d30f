"""Run folders behind the first screen of the report: models, reference classifiers and limited runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.run_folders import Folder, outcomes

from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import DatasetSection, build_section

LONG = "a model whose name has very many words and letters indeed"


def unread(rows: Sequence[Outcome], every: int = 1) -> list[Outcome]:
    """The rows, of which all but each ``every``-th could not be read."""
    return [
        replace(row, predicted=None, status="out_of_list") if every == 1 or index % every else row
        for index, row in enumerate(rows)
    ]


def guessing(rows: Sequence[Outcome]) -> list[Outcome]:
    """The rows of a classifier that always answers the most common class."""
    return [replace(row, predicted="malignant", status="parsed") for row in rows]


def section_of(*folders: Folder) -> DatasetSection:
    (dataset,) = collect_runs([folder.folder for folder in folders]).datasets
    return build_section(dataset)


def model(root: Path, name: str = LONG, rows: Sequence[Outcome] = (), **facts: Any) -> Folder:
    made = Folder(root / str(len(list(root.iterdir()))), name)
    return made.answers("med_cls_toy", rows or outcomes(), **facts)


def baseline(root: Path, rows: Sequence[Outcome] = (), name: str = "pixels") -> Folder:
    made = Folder(root / f"baseline-{name}", f"baseline {name}", baseline=name)
    return made.answers("med_cls_toy", rows or outcomes(skill=3, seed=9))


def limited(made: Folder, documents: int = 480) -> Folder:
    """The run under ``--limit``; the task has more documents."""
    made.manifest["command"]["limit"] = 64.0
    for task, entry in list(made.manifest["tasks"].items()):
        made.tell(task, documents=documents, questions=documents, evaluated=None, dataset=entry["settings"]["dataset"])
    return made


def several(root: Path, *skills: float, seed: int = 1) -> list[Folder]:
    return [
        model(root, f"{LONG} {skill}", outcomes(skill=skill, seed=seed + index)) for index, skill in enumerate(skills)
    ]


def diagnosed(root: Path, change: dict[str, Any], name: str = "model-a", seed: int = 0) -> Folder:
    made = Folder(root / name, name).answers("med_probe_toy", outcomes(seed=seed)).probes("med_probe_toy", named=None)
    path = made.folder / "med_probe_toy.probes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for mode in change.pop("supported", ()):
        next(effect for effect in content["diagnosis"]["effects"] if effect["mode"] == mode)["verdict"] = "supported"
    content["diagnosis"].update(change)
    path.write_text(json.dumps(content), encoding="utf-8")
    made.manifest["command"]["model_args"] = "pretrained=hub/tiny,batch=4"
    return made.write()
