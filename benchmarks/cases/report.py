"""The page of ten models: figures drawn on all cores at once against one after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

from benchmarks.harness import Benchmark, Comparison, Details, Run, Sides, expect, timed
from medmllm_plugins.report import assemble
from medmllm_plugins.report.figures.parallel_figures import draw_all
from medmllm_plugins.report.report_files import write_report

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from support.run_folders import Folder, outcomes


def write_runs(root: Path, models: int, layers: int, documents: int) -> list[Path]:
    """Write run folders of models with answers and probes, and of a reference classifier."""
    folders = []
    for number in range(models):
        run = Folder(root / f"model-{number}", f"model-{number}")
        rows = outcomes(skill=0.5 + 0.3 * number, seed=number, count=documents)
        run.answers("med_probe_toy", rows).probes("med_probe_toy", layers=layers, seed=number)
        folders.append(run.folder)
    reference = Folder(root / "reference", "baseline pixels", baseline="pixels")
    reference.answers("med_cls_toy", outcomes(skill=2.5, seed=99, count=documents))
    return [*folders, reference.folder]


def page(folders: Sequence[Path], output: Path, workers: int | None = None) -> bytes:
    """Make the page, with its figures drawn by that many workers, and return it."""
    with patch.object(assemble, "draw_all", draw_all if workers is None else partial(draw_all, workers=workers)):
        write_report(folders, output)
    return output.read_bytes()


def check(ours: bytes, baseline: bytes) -> Details:
    """Check that both sides made the same page."""
    expect(ours == baseline, "the same page", "two different ones", "tests/report")
    return {"page_mb": round(len(ours) / 1e6, 2)}


def setup(run: Run, models: int, layers: int, documents: int) -> Sides:
    """Write the run folders; a page with an attribution of every document is among the details."""
    folders = write_runs(run.folder, models, layers, documents)

    def details(comparison: Comparison) -> Details:
        attributed = Folder(run.folder / "attributions").answers("med_cls_toy", outcomes(count=documents))
        attributed.attributions(
            "med_attr_toy", documents=documents, size=(256, 256), methods=("grad_cam",), layers=("pixels",), noise=True
        )
        output = run.folder / "attributions.html"
        seconds, report = timed(lambda: write_report([attributed.folder], output))
        return {
            "ours_s": median(comparison.ours),
            "attributions_mb": round(output.stat().st_size / 1e6, 2),
            "attributions_s": round(seconds, 1),
            "attributions_shown": len(report.gallery.cards),
        }

    return Sides(
        ours=partial(page, folders, run.folder / "ours" / "report.html"),
        baseline=partial(page, folders, run.folder / "baseline" / "report.html", workers=1),
        check=check,
        details=details,
    )


BENCHMARK = Benchmark(
    name="report",
    ours="the page of ten models, figures drawn on all cores",
    baseline="the same page, figures drawn one after the other",
    setup=setup,
    sizes={
        "full": {"models": 10, "layers": 27, "documents": 1_000},
        "quick": {"models": 2, "layers": 3, "documents": 30},
    },
    targets={("full", "cpu"): 1.4} if (os.cpu_count() or 1) > 1 else {},
    limits={"ours_s": 5.0, "attributions_mb": 10.0},
)
