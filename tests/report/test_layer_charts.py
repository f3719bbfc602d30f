"""Layer charts: what the band of controls holds, where layers stand, and that both figures agree."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.figures import layer_figures
from medmllm_plugins.report.figures.figure_style import SERIES, style
from medmllm_plugins.report.layer_charts import WIDTH, LayerChart, layer_chart
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs


def dataset_of(folder: Path, *, layers: int = 6, **changed: Any) -> DatasetRuns:
    made = Folder(folder).answers("med_probe_toy", outcomes()).probes("med_probe_toy", layers=layers)
    path = made.folder / "med_probe_toy.probes.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), "utf-8")
    (dataset,) = collect_runs([made.folder]).datasets
    return dataset


def chart_of(dataset: DatasetRuns) -> LayerChart:
    ((result, probing),) = dataset.probed()
    return layer_chart(result, probing)


def test_the_band_is_the_highest_control_at_each_layer(tmp_path: Path) -> None:
    chart = chart_of(dataset_of(tmp_path / "a"))
    controls = {control.name: dict(pair for part in control.parts for pair in part) for control in chart.controls}
    assert set(controls) == {"task", "permutation", "random", "pixels", "lens"}
    band = dict(pair for part in chart.band for pair in part)
    assert set(band.values()) == {0.5}, "raw pixels are the most demanding"
    assert len(band) == len(chart.positions)
    assert set(controls["random"].values()) == {0.36} and len(controls["random"]) == 6, "only the tower has them"
    assert set(controls["lens"]) == {chart.positions[f"llm.{index:02d}"] for index in range(6)}


def test_guessing_is_the_floor_of_the_band(tmp_path: Path) -> None:
    chart = chart_of(dataset_of(tmp_path / "a", majority=0.62))
    assert {reached for part in chart.band for _, reached in part} == {0.62}


def test_the_centre_of_the_image_is_no_part_of_the_band(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "a")
    path = tmp_path / "a" / "med_probe_toy.probes.json"
    record = json.loads(path.read_text("utf-8"))
    pixels = next(point for point in record["points"] if point["layer"] == "control.pixels")
    for layer, value in (("control.centre", 0.8), ("control.border", 0.55)):
        accuracy = {"value": value, "low": value, "high": value}
        record["points"].append(pixels | {"layer": layer, "accuracy": accuracy})
    path.write_text(json.dumps(record), "utf-8")
    (dataset,) = collect_runs([tmp_path / "a"]).datasets
    chart = chart_of(dataset)
    assert {reached for part in chart.band for _, reached in part} == {0.55}
    assert {"centre", "border"} <= {control.name for control in chart.controls}


@pytest.mark.parametrize("layers", [1, 3, 40])
def test_every_module_has_room_for_its_name(tmp_path: Path, layers: int) -> None:
    chart = chart_of(dataset_of(tmp_path / "a", layers=layers))
    assert [module.name for module in chart.modules] == ["vision", "connector", "llm", "answer"]
    assert all(module.end - module.start > 10 for module in chart.modules)
    assert chart.modules[0].start == 0 and chart.modules[-1].end == WIDTH
    places = list(chart.positions.values())
    assert places == sorted(places) and len(set(places)) == len(places)
    for module in chart.modules[:-1]:
        inside = [at for name, at in chart.positions.items() if name.partition(".")[0] == module.name]
        assert inside and module.start < min(inside) <= max(inside) < module.end


def test_curves_do_not_cross_the_borders_of_modules(tmp_path: Path) -> None:
    chart = chart_of(dataset_of(tmp_path / "a"))
    assert [curve.name for curve in chart.curves] == ["mean", "last"]
    assert [part[0][1].part for part in chart.curves[0].parts] == ["vision", "connector", "llm"]
    assert chart.best is not None and chart.best[1].layer == "vision.05"


def test_the_chart_names_what_it_shows(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "a")
    with style():
        drawing = layer_figures.single_model(dataset.results[0], dataset, 0)
    words = " ".join(
        "".join(node.itertext()) for node in ET.fromstring(drawing.svg).iter() if node.tag.endswith("text")
    )
    for name in ("vision", "connector", "LLM", "answer", "mean token", "last token", "best: vision.05, 86.0%"):
        assert name in words and name in drawing.interactive, name
    assert "reachable without the class" in words and "reachable without the class" in drawing.interactive
    assert "LLM (last token)" in drawing.alt and "llm (last" not in drawing.alt
    used = {colour for colour in SERIES if colour in drawing.svg or colour in drawing.interactive}
    assert used == {SERIES[0]}, "colours of models tell models apart, and nothing else"
    for name in ("task", "permutation", "random", "pixels", "lens"):
        assert f'"control-{name}"' in drawing.interactive
    for stage in ("vision", "connector", "llm", "answer"):
        assert f'"stage-{stage}"' in drawing.interactive


def test_what_is_missing_is_not_drawn(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "a", answer=None, mapping=None, majority=math.nan)
    with style():
        drawing = layer_figures.single_model(dataset.results[0], dataset, 0)
    assert "control-lens" not in drawing.interactive and "NaN" not in drawing.interactive
