"""Records are written and read back, newer versions are refused, and the schemas describe what is written."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import LABELS, Folder, findings, outcomes

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results import schema
from medmllm_plugins.results.attribution_records import AttributionIndex
from medmllm_plugins.results.manifest import (
    Manifest,
    ModelEntry,
    SettingsEntry,
    TaskEntry,
    read_manifest,
    write_manifest,
)
from medmllm_plugins.results.metric_files import read_metrics
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.results.probe_records import ProbeAnalysis, ProbePoint
from medmllm_plugins.results.run_reader import read_run
from medmllm_plugins.utils.record import field_types

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def summaries() -> list[AnySummary]:
    variants = [row for seed in (0, 1) for row in outcomes(count=12, seed=seed, variant=f"order {seed}")]
    return [
        summarise(outcomes(count=30), LABELS, "malignant", resamples=20),
        summarise_findings(findings(count=6), ("Atelectasis", "Cardiomegaly", "Effusion", "Hernia"), resamples=20),
        summarise_variants(variants, LABELS, None, resamples=20),
    ]


@pytest.mark.parametrize("index", range(3))
def test_metrics_are_read_as_they_were_written(index: int) -> None:
    content = json.loads(json.dumps(summaries()[index].to_dict(), allow_nan=False))
    assert read_metrics(content).to_dict() == content


def test_probes_and_attributions_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").probes("med_probe_toy").attributions("med_attr_toy")
    files = {ProbeAnalysis: "med_probe_toy.probes.json", AttributionIndex: "attributions/med_attr_toy/index.json"}
    for record, name in files.items():
        content = json.loads((made.folder / name).read_text("utf-8"))
        once = record.from_dict(content).to_dict()
        assert record.from_dict(json.loads(json.dumps(once, allow_nan=False))).to_dict() == once
        kept = {key: value for key, value in once.items() if key in content and not isinstance(value, list | dict)}
        assert {key: content[key] for key in kept} == kept


def test_unusable_values_become_defaults() -> None:
    point = ProbePoint.from_dict(
        {"layer": 7, "width": "x", "read": "x", "accuracy": [1], "p": 10**400, "repeats": [None]}
    )
    assert (point.layer, point.width, point.read, point.C) == ("7", 0, True, None)
    assert math.isnan(point.accuracy.value) and math.isnan(point.p) and math.isnan(point.repeats[0])
    assert Estimate.from_dict(None).to_dict() == {"value": None, "low": None, "high": None}
    analysis = ProbeAnalysis.from_dict(
        {"medmllm_probes": 1, "points": [{}, 3], "diagnosis": {"effects": [{"mode": "x"}, {"mode": "vision"}]}}
    )
    assert len(analysis.points) == 1 and [effect.mode for effect in analysis.diagnosis.effects] == ["vision"]


@pytest.mark.parametrize("record", [ProbeAnalysis, AttributionIndex, Manifest])
def test_newer_versions_are_refused(record: Any) -> None:
    with pytest.raises(
        DataError, match=rf"expected version 1 of the format '{record.FORMAT}', got version 2\..*upgrade"
    ):
        record.from_dict({record.FORMAT: 2})


def test_files_of_a_newer_version_are_named(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy", outcomes(count=9)).probes("med_probe_toy")
    path = made.folder / "med_probe_toy.probes.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "medmllm_probes": 2}), "utf-8")
    assert any(
        "med_probe_toy.probes.json cannot be used: expected version 1" in item
        for item in read_run(made.folder).all_missing()
    )
    made.manifest["medmllm_manifest"] = 2
    made.write()
    with pytest.raises(DataError, match=r"manifest\.json: expected version 1"):
        load_run(made.folder)
    assert any("manifest.json cannot be used" in note for note in read_run(made.folder).missing)


@pytest.mark.parametrize("name", schema.RECORDS)
def test_schemas_describe_every_field(name: str) -> None:
    record = schema.RECORDS[name]
    properties = schema.json_schema(record)["properties"]
    assert all(properties[field.name]["description"] for field in fields(record))
    assert field_types(record).keys() <= properties.keys()


def test_schemas_are_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main([str(SCHEMAS), "--check"]) == 0
    assert schema.main([str(tmp_path)]) == schema.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "probes.schema.json").write_text("{}", "utf-8")
    assert schema.main(["--check", str(tmp_path)]) == 1
    assert "outdated: probes.schema.json. Run: python -m" in capsys.readouterr().out


def test_an_entry_of_a_task_reads_as_it_was_written_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    settings = SettingsEntry(dataset="toy", paraphrase="all")
    manifest = Manifest(model=ModelEntry(name="m", batch_size=4), tasks={"t": TaskEntry(settings=settings)})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest and settings.varied == "wording"
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest.to_dict(), "tasks": {"t": 3}}))
    with pytest.raises(DataError, match="damaged entries of tasks"):
        read_manifest(tmp_path)
