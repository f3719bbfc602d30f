"""The figures that docs/attribution.md gives of the demo's maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host.test_attribution_tasks import index_of


@pytest.mark.slow
def test_the_command_of_the_docs_finds_the_lesions(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    """The very task that docs/attribution.md gives its figures for."""
    text = (Path(__file__).parents[2] / "docs" / "attribution.md").read_text(encoding="utf-8")
    command = text.split("On 24 phantoms of the demo")[1].split("--tasks ")[1].split()
    task, batch = command[0], int(command[command.index("--batch_size") + 1])
    index = index_of(evaluate(tmp_path, tasks=[task], batch_size=batch).folder)
    assert len({entry["id"] for entry in index["entries"]}) == 24
    rows = {(row["method"], row["layer"]): row for row in index["summary"]}
    best = rows["layer_integrated_gradients", "vision.00"]
    assert best["inside_hits"]["value"] >= 0.6 > 5 * best["area"]
    assert best["inside"]["low"] > best["area"] and best["deletion_gain"]["low"] > 0
    assert best["failed"] == [] and best["trusted"]
