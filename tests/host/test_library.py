"""docs/library.md runs as it stands where lmms-eval is missing, and its numbers are those of a run."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host.conftest import PROBE_TASK
from support.image_files import write_picture

import medmllm_plugins
from medmllm_plugins import Run, probe_features
from medmllm_plugins.results.probe_files import read_probes
from medmllm_plugins.results.probe_records import ProbePoint
from medmllm_plugins.testing.tiny_families import write_family

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
HEAD = 'import sys\nsys.modules["lmms_eval"] = None  # as if it were not installed\n'
TAIL = """
assert sys.modules["lmms_eval"] is None
print("done")
"""


def blocks() -> dict[str, str]:
    """The Python of each section of the page, by its heading."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    code = {part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in sections}
    return {heading: "".join(texts) for heading, texts in code.items()}


CHECKS = {
    "Probe your own features": """
assert results["encoder"].accuracy.low > 0.8 and results["encoder"].p_holm < 0.01
assert results["noise"].p_holm > 0.05 and results["encoder"].selectivity.low > 0.1
assert results["noise"].accuracy.low < 0.5 and results.control_types > 1
""",
    "Attribute your own model": "assert result.map.shape == (1, 64, 64) and result.checks.deletion is not None",
    "Read a run": """
assert results["connector"].selectivity.value > 0.1 and "control.pixels" in str(results.frame())
""",
    "Fit a repair": """
(second,) = again.generate([question], images[:1], max_new_tokens=8)
assert second.text == answers[0].text and fitted.log.steps == 10
""",
}
"""What holds after the example of each section."""


def test_every_section_has_an_example() -> None:
    assert list(blocks()) == list(CHECKS) and all(blocks().values())


@pytest.mark.slow
def test_examples_run_without_lmms_eval(probed: Any, tmp_path: Path) -> None:
    write_family("qwen2_5_vl", tmp_path / "checkpoints" / "my-model")
    write_picture(tmp_path / "scan.png", size=(64, 64))
    shutil.copytree(probed.folder, tmp_path / "results")
    script = "\n".join(f"{code}\n{CHECKS[heading]}" for heading, code in blocks().items())
    ended = subprocess.run(
        [sys.executable, "-c", f"{HEAD}{script}{TAIL}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(medmllm_plugins.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0 and ended.stdout.endswith("done\n"), ended.stdout[-2000:] + ended.stderr[-3000:]


def numbers(point: ProbePoint) -> dict[str, float]:
    """The figures of a point by name."""
    figures: dict[str, float] = {}
    for name, value in point.to_dict().items():
        if isinstance(value, dict):
            figures |= {f"{name} {key}": math.nan if part is None else part for key, part in value.items()}
        elif isinstance(value, float):
            figures[name] = value
    return figures


@pytest.mark.slow
def test_features_of_a_run_give_the_figures_of_the_run(probed: Any) -> None:
    run, analysis = Run(probed.folder), read_probes(probed.folder, PROBE_TASK)
    assert analysis is not None
    arrays, index = {}, None
    for point in analysis.points:
        arrays[point.site], index = run.features(*point.site)
    assert index is not None
    own = {site: values for site, values in arrays.items() if not site[0].startswith("control.")}
    controls = {layer: values for (layer, _), values in arrays.items() if layer.startswith("control.")}
    assert own and set(controls) >= {"control.pixels", "control.border"}
    results = probe_features(
        own,
        index["label"],
        groups=index["group"],
        folds=index["fold"],
        control_features=controls,
        classes=analysis.labels,
    )
    assert {point.site for point in results.points} == set(arrays) and results.control_types == analysis.control_types
    for point in analysis.points:
        record, expected = numbers(results[point.site]), numbers(point)
        # Sums over other sites' rows round differently; what is counted is the same.
        assert record == pytest.approx(expected, abs=1e-6, nan_ok=True), point.site
        assert record["accuracy value"] == expected["accuracy value"]
    assert results.majority == analysis.majority and results.groups == analysis.groups
    assert np.isfinite(results.frame()["value"].dropna()).all()
