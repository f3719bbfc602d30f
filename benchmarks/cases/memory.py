"""Peak memory of reading and fitting a feature store of 100,000 documents against one of 10,000.

Each store is opened, its documents are arranged and its probes are fitted in a process of its own.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Benchmark, Details, Run, Sides, expect, in_new_process, peak_memory_mb
from medmllm_plugins.errors import DataError
from medmllm_plugins.features.store import seal, write_header
from medmllm_plugins.features.store_writer import SHARD_ROWS, FeatureBatch, Writer
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer
from medmllm_plugins.results.probe_records import CONTROL, PIXELS

LABELS = ("a", "b", "c", "d")
GROUP, HELD_OUT = 4, 10
"""Documents of a group; of ten groups one is in the validation fold, and one in the test fold."""
OPTIONS = Options(controls=1, permutations=1)
"""The whole grid of a run; its other label sets take time and do not depend on the documents."""
STAGES = ("import", "open", "samples", "fit")
_CHILD = """
import json, pathlib, sys

from benchmarks.cases import memory

print(json.dumps(memory.read_and_fit(pathlib.Path(sys.argv[1]))))
"""


def write_store(folder: Path, documents: int, *, layers: int, width: int, pixel_width: int) -> None:
    """Write a store of made-up features (layers with two poolings each, raw pixels) as a run does, batch by batch."""
    generator = np.random.default_rng(0)
    names = ["connector", *(f"llm.{number:02d}" for number in range(layers - 2)), "llm.norm"]
    stored = [StoredLayer(name, name.partition(".")[0], (MEAN, LAST), (width, width)) for name in names]
    stored.append(StoredLayer(PIXELS, CONTROL, (MEAN,), (pixel_width,)))
    write_header(folder, Header("memory", "made up", LABELS, "", "none", "", tuple(stored)))
    sites = [f"{name}/{pooling}" for name in names for pooling in (MEAN, LAST)]
    centres = generator.standard_normal((len(LABELS), width), dtype=np.float32)
    kinds = generator.integers(0, 200, (8, pixel_width)).astype(np.float32)
    writer = Writer(folder, rank=0)
    try:
        for start in range(0, documents, SHARD_ROWS):
            numbers = np.arange(start, min(start + SHARD_ROWS, documents))
            truth = numbers // GROUP % len(LABELS)
            noise = generator.standard_normal((len(sites), len(numbers), width), dtype=np.float32)
            pixels = kinds[numbers // GROUP % 7 % len(kinds)]
            pixels = pixels + generator.integers(0, 50, pixels.shape, dtype=np.int16)
            rows = [_row(int(number), LABELS[label]) for number, label in zip(numbers, truth, strict=True)]
            stack = torch.from_numpy(noise + 0.3 * centres[truth])
            writer.add(FeatureBatch(rows, [sites], [stack], {f"{PIXELS}/{MEAN}": pixels.astype(np.float32)}))
    finally:
        writer.close()
    seal(folder)


def _row(number: int, label: str) -> dict[str, object]:
    """Return a document's row as the host's wrapper writes it, with label scores outside of the train fold."""
    group = number // GROUP
    fold = {0: "validation", 1: "test"}.get(group // len(LABELS) % HELD_OUT, "train")
    scores, tokens = (None, None) if fold == "train" else ([-1.0, -2.0, -3.0, -4.0], [1, 2, 3, 4])
    return {
        "id": f"{number:08d}", "document": f"{number:08d}", "group": f"{group:08d}", "fold": fold, "label": label,
        "answer": label, "scores": scores, "blank": scores, "label_tokens": tokens,
    }  # fmt: skip


def read_and_fit(folder: Path) -> dict[str, dict[str, float]]:
    """Read and fit a store in this process, and return the peaks in MB after each stage and the rows of each fold."""
    peaks = [peak_memory_mb()]
    store = FeatureStore(folder)
    peaks.append(peak_memory_mb())
    samples = read_labelled_features(store)
    peaks.append(peak_memory_mb())
    fit_probes(store, samples, OPTIONS, torch.device("cpu"))
    peaks.append(peak_memory_mb())
    # The kernel estimates resident pages from counters by core, so a later reading may be a few pages lower.
    by_stage = dict(zip(STAGES, accumulate((peak or 0.0 for peak in peaks), max), strict=True))
    return {"by_stage": by_stage, "rows": {fold: len(rows) for fold, rows in samples.rows.items()}}


def peaks_in_child(folder: Path) -> dict[str, dict[str, float]]:
    """Call :func:`read_and_fit` in a fresh process."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    peaks: dict[str, dict[str, float]]
    peaks = in_new_process(_CHILD, str(folder), fix="Run `pytest tests/probes`.", PYTHONPATH=path)
    return peaks


def check(ours: Details, baseline: Details) -> Details:
    """Check that both stores have documents in the same folds, and return their peaks."""
    folds = [sorted(side["rows"]) for side in (ours, baseline)]
    expect(folds[0] == folds[1], "the same folds", f"{folds[0]} and {folds[1]}", "tests/probes")
    facts: dict[str, Any] = {}
    for name, side in (("large", ours), ("small", baseline)):
        facts |= {f"{name}_{fold}_rows": count for fold, count in side["rows"].items()}
        facts |= {f"{name}_mb_after_{stage}": round(value) for stage, value in side["by_stage"].items()}
    return facts


def setup(run: Run, small: int, large: int, **shape: int) -> Sides:
    """Write both stores.

    Raises:
        DataError: This is not Linux.
    """
    if peak_memory_mb() is None:
        raise DataError("Expected /proc/self/status, which holds a process's peak memory, got none. Run it on Linux.")
    for documents in (small, large):
        write_store(run.folder / str(documents), documents, **shape)
    return Sides(
        ours=partial(peaks_in_child, run.folder / str(large)),
        baseline=partial(peaks_in_child, run.folder / str(small)),
        check=check,
        warm_up=lambda: None,
        measure=lambda peaks: float(peaks["by_stage"][STAGES[-1]]),
    )


BENCHMARK = Benchmark(
    name="memory",
    ours="probes of a store of 100,000 documents",
    baseline="probes of a store of 10,000 documents",
    setup=setup,
    sizes={
        "full": {"small": 10_000, "large": 100_000, "layers": 70, "width": 32, "pixel_width": 3072},
        "quick": {"small": 640, "large": 1_280, "layers": 3, "width": 8, "pixel_width": 16},
    },
    targets={("full", "cpu"): 1.10},
    kind="overhead",
    repeats=1,
    unit="mb",
)
