"""Figures on file are compared with the answers; what differs is named, and intervals are left alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.run_folders import FINDINGS, LABELS, findings, outcomes

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.manifest import SettingsEntry, TaskEntry
from medmllm_plugins.results.recomputation import Classes, disagreements, recompute

ORDERS = {f"order {turn}": LABELS for turn in range(2)}


def kinds() -> dict[str, tuple[list[Outcome], dict[str, Any]]]:
    varied = [row for name in ORDERS for row in outcomes(count=30, seed=int(name[-1]), variant=name)]
    rows, asked = outcomes(count=40), findings(count=12)
    made = {
        "multiclass": (rows, summarise(rows, LABELS, None, resamples=20)),
        "ordinal": (rows, summarise(rows, LABELS, "malignant", kind="ordinal", resamples=20)),
        "multilabel": (asked, summarise_findings(asked, FINDINGS, resamples=20)),
        "varied": (varied, summarise_variants(varied, LABELS, None, orders=ORDERS, resamples=20)),
    }
    return {name: (rows, json.loads(json.dumps(summary.to_dict()))) for name, (rows, summary) in made.items()}


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_an_evaluation_agree_with_their_answers(kind: str) -> None:
    rows, stored = KINDS[kind]
    classes = Classes.of_task(TaskEntry(), stored)
    assert classes is not None and classes.kind == ("multiclass" if kind == "varied" else kind)
    assert disagreements(stored, rows, classes) == []
    again = recompute(rows, classes, resamples=20).to_dict()
    assert again["metrics"] == stored["metrics"]


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "metrics.accuracy.value": lambda stored: stored["metrics"]["accuracy"].__setitem__("value", 0.99),
    "metrics.balanced.value": lambda stored: stored["metrics"]["balanced"].__setitem__("value", None),
    "metrics.parsed": lambda stored: stored["metrics"].pop("parsed"),
    "metrics.invented": lambda stored: stored["metrics"].__setitem__("invented", {"value": 1.0}),
    "n": lambda stored: stored.__setitem__("n", 10**400),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", EDITS)
def test_an_edited_figure_is_named(kind: str, path: str) -> None:
    rows, original = KINDS[kind]
    stored = copy.deepcopy(original)
    EDITS[path](stored)
    classes = Classes.of_task(TaskEntry(), original)
    assert classes is not None
    (difference,) = disagreements(stored, rows, classes)
    assert difference.startswith(f"{path} is ") and len(difference) < 400


def test_classes_of_the_manifest_come_first() -> None:
    rows, stored = KINDS["multiclass"]
    entry = TaskEntry(settings=SettingsEntry(), labels=LABELS, kind="ordinal", positive="benign")
    assert Classes.of_task(entry, {"labels": ["x", "y"]}) == Classes(LABELS, "ordinal", "benign")
    assert Classes.of_task(TaskEntry(), {}) is None
    assert Classes.of_task(TaskEntry.from_dict({"labels": "ab"}), {"variants": {"a": None}}) is None
    with pytest.raises(DataError):
        disagreements(stored, rows, Classes(("benign", "other")))
