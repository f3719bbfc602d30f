"""Figures show what they say: every model, every class, every chance, and letters in any script."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from benchmarks.run_folders import Folder, outcomes
from medmllm_plugins.report import figures_layers, figures_mapping
from medmllm_plugins.report.drawing import style
from medmllm_plugins.report.gathering import DataPart, gather

SVG = "{http://www.w3.org/2000/svg}"
USE = f"{SVG}use"


def part_of(*folders: Folder) -> DataPart:
    (part,) = gather([one.folder for one in folders]).sets
    return part


def probed(folder: Path, name: str, *, seed: int = 0, layers: int = 24, **changed: Any) -> Folder:
    """A probed model, with other entries in its analysis."""
    made = Folder(folder, name).answers("med_probe_toy", outcomes(seed=seed))
    made.probes("med_probe_toy", layers=layers, seed=seed)
    path = made.folder / "med_probe_toy.probes.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), encoding="utf-8")
    return made


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def marks_of(svg: str, series: int) -> list[tuple[float, float]]:
    """Where the marks of a model stand."""
    groups = [one for one in ET.fromstring(svg).iter() if one.attrib.get("data-series") == str(series)]
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for group in groups for use in group.iter(USE)]


def test_the_connector_of_every_model_has_a_mark(tmp_path: Path) -> None:
    part = part_of(*(probed(tmp_path / str(turn), f"model-{turn}", seed=turn) for turn in range(5)))
    with style():
        drawing = figures_layers.overlaid(part, 0)
    assert drawing is not None
    upright = {
        float(node.attrib["d"].split()[1])
        for node in ET.fromstring(drawing.svg).iter(f"{SVG}path")
        if "stroke: #5d6872" in node.attrib.get("style", "") and _upright(node.attrib["d"])
    }
    _, left, right, _ = sorted(upright - {0.0})  # the axis and three borders; a tick's mark is at zero
    seen = {turn: [x for x, _ in marks_of(drawing.inline, turn) if left < x < right] for turn in range(5)}
    assert all(len(found) == 1 for found in seen.values()), seen
    assert len({found[0] for found in seen.values()}) == 5, "models that score alike hide each other"


def _upright(path: str) -> bool:
    words = path.split()
    return len(words) == 6 and words[1] == words[4] and words[2] != words[5]


def test_each_number_of_classes_has_its_chance(tmp_path: Path) -> None:
    two = probed(tmp_path / "b", "model-b", labels=["no", "yes"], chance=0.5)
    part = part_of(probed(tmp_path / "a", "model-a"), two)
    with style():
        found = [figures_layers.overlaid(part, 0), figures_mapping.lens(part, 1)]
    for drawing in found:
        assert drawing is not None
        said = words(drawing.svg)
        assert "chance, 2 classes" in said and "chance, 3 classes" in said


def test_alternatives_keep_the_letters_of_names(tmp_path: Path) -> None:
    part = part_of(probed(tmp_path / "a", "model-a", layers=3))
    with style():
        drawing = figures_layers.single(part.probed()[0], part, 0)
    assert "LLM (last)" in drawing.alt and "llm (last)" not in drawing.alt
