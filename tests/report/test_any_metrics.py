"""Sentences, tables and methods stand metrics of any content: a damaged file costs its own figures and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.run_folders import Folder, findings, outcomes

from medmllm_plugins.report.changed_questions import changed_questions
from medmllm_plugins.report.methods_text import methods
from medmllm_plugins.report.overview import overview
from medmllm_plugins.report.report_notes import collect_notes
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.run_pairs import model_differences
from medmllm_plugins.report.tables import answer_tables, finding_tables
from medmllm_plugins.report.verdict import verdicts

ANYTHING = st.sampled_from(
    [None, "x", "", True, -1, 10**400, float("nan"), float("inf"), [], {}, [[1]], ["a"], {"a": 1}, {"a": None}]
)


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value; of lists the first two."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:2]))
    below = [path for key, item in inner for path in paths(item, (*above, key))]
    return [above, *below] if above else below


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Folder(tmp_path_factory.mktemp("any") / "run")
    folder.answers("med_cls_toy", outcomes(count=12))
    folder.answers("med_cls_toy:image=blank", outcomes(count=12, skill=0), image="blank")
    varied = [outcome for turn in (0, 1) for outcome in outcomes(count=12, seed=turn, variant=f"order {turn}")]
    folder.answers("med_cls_toy:order=varied", varied, order="varied")
    folder.multilabel("med_cls_findings", findings(count=6))
    return folder.folder


def write_all(folder: Path) -> None:
    """All that the page says in words and tables."""
    gathered = collect_runs([folder])
    for part in gathered.datasets:
        content, pairs = verdicts(part), model_differences(part)
        assert overview(part, content, pairs)
        tables = [answer_tables.metrics_table(part, content), answer_tables.differences_table(part, pairs)]
        tables.append(answer_tables.sensitivity_table(part, changed_questions(part)))
        for table in (
            answer_tables.class_table,
            answer_tables.parsing_table,
            answer_tables.label_scores_table,
            answer_tables.unparsed_table,
            finding_tables.findings_table,
            finding_tables.counts_table,
        ):
            tables.append(table(part))
        for result in tables:
            assert result.csv()
            assert len(result.shown()) == len(result.rows)
            json.dumps(result.record().to_dict(), allow_nan=False)
    assert collect_notes(gathered) and methods(gathered).text()


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data())
def test_any_metrics(made: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(made.glob("*.metrics.json"))))
    whole = path.read_text(encoding="utf-8")
    content = json.loads(whole)
    *above, last = data.draw(st.sampled_from(paths(content)))
    inner = content
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(ANYTHING)
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
        write_all(made)
    finally:
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("variants", [None, {}, [], {"order 0": None}, {"order 0": {"label_scores": [], "labels": 3}}])
def test_any_variants(made: Path, variants: Any) -> None:
    path = made / "med_cls_toy+order=varied.metrics.json"
    whole = path.read_text(encoding="utf-8")
    try:
        path.write_text(json.dumps({**json.loads(whole), "variants": variants}), encoding="utf-8")
        write_all(made)
    finally:
        path.write_text(whole, encoding="utf-8")
