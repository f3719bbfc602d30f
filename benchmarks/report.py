"""The page of ten models: figures drawn on all cores at once against one after the other, and how long both take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.run_folders import Folder, outcomes
from medmllm_plugins.errors import ModelError
from medmllm_plugins.report import assemble
from medmllm_plugins.report.figures.parallel_figures import draw_all
from medmllm_plugins.report.report_files import write_report

MODELS, LAYERS, DOCUMENTS = 10, 27, 1_000
SECONDS, MEGABYTES = 5.0, 10.0
"""What a page of ten models may take, and a page of 1,000 documents may weigh."""


def ten_models(root: Path) -> list[Path]:
    """Run folders of ten models with answers and probes, and of a reference classifier."""
    folders = []
    for place in range(MODELS):
        made = Folder(root / f"model-{place}", f"model-{place}")
        rows = outcomes(skill=0.5 + 0.3 * place, seed=place, count=DOCUMENTS)
        made.answers("med_probe_toy", rows).probes("med_probe_toy", layers=LAYERS, seed=place)
        folders.append(made.folder)
    reference = Folder(root / "reference", "baseline pixels", baseline="pixels")
    reference.answers("med_cls_toy", outcomes(skill=2.5, seed=99, count=DOCUMENTS))
    return [*folders, reference.folder]


def thousand_documents(root: Path) -> Path:
    """Run folder of one model with an attribution of each of 1,000 documents."""
    made = Folder(root / "attributions")
    made.answers("med_cls_toy", outcomes(count=DOCUMENTS)).attributions(
        "med_attr_toy", documents=DOCUMENTS, size=(256, 256), methods=("grad_cam",), layers=("pixels",), noise=True
    )
    return made.folder


def serial(folders: Sequence[Path], output: Path) -> None:
    """Make the page with its figures drawn one after the other."""
    assemble.draw_all = lambda jobs: draw_all(jobs, workers=1)  # type: ignore[attr-defined]
    try:
        write_report(folders, output)
    finally:
        assemble.draw_all = draw_all  # type: ignore[attr-defined]


def run(settings: Settings) -> Record:
    """Compare the two ways to draw.

    Raises:
        ModelError: they do not give the same page.
    """
    with TemporaryDirectory() as name:
        root = Path(name)
        folders = ten_models(root)
        one, other = root / "one" / "report.html", root / "other" / "report.html"
        write_report(folders, one)
        serial(folders, other)
        if one.read_bytes() != other.read_bytes():
            raise ModelError("Expected both sides to give the same page, found two: run `pytest tests/report`.")
        device = torch.device("cpu")
        comparison = compare(
            stopwatch(lambda: serial(folders, other), device),
            stopwatch(lambda: write_report(folders, one), device),
            repeats=settings.repeats,
        )
        folder = thousand_documents(root)
        began = perf_counter()
        report = write_report([folder], root / "thousand" / "report.html")
        seconds = perf_counter() - began
        size = (root / "thousand" / "report.html").stat().st_size / 1e6
        ten = one.stat().st_size / 1e6
    return Record(
        settings=settings,
        sides=(
            ("one_by_one", f"the page of {MODELS} models, figures drawn one after the other"),
            ("at_once", "the same page, figures drawn on all cores"),
        ),
        comparison=comparison,
        target=Target("at least", 1.4) if (os.cpu_count() or 1) > 1 else None,
        details={
            "at_once_under_5_s": comparison.denominator.median < SECONDS,
            "page_mb": round(ten, 2),
            "thousand_documents_mb": round(size, 2),
            "thousand_documents_under_10_mb": size < MEGABYTES,
            "thousand_documents_s": round(seconds, 1),
            "thousand_documents_shown": len(report.gallery.cards),
        },
    )
