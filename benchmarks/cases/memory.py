"""Peak memory of reading and fitting a feature store of 100,000 documents against one of 10,000.

Each store is opened, its documents are arranged and its probes are fitted in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.harness import Benchmark, Run, Sides, expect, peak_memory_mb
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.features.control_features import PIXELS
from medmllm_plugins.features.store import seal, write_header
from medmllm_plugins.features.store_writer import SHARD_ROWS, FeatureBatch, Writer
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer

LABELS = ("a", "b", "c", "d")
GROUP = 4
"""Documents of a group."""
HELD_OUT = 10
"""One group in ten is in the validation fold, and one in the test fold."""
OPTIONS = Options(controls=1, permutations=1)
"""The whole grid of a run; its other label sets take time and do not depend on the documents."""
STAGES = ("import", "open", "samples", "fit")
_CHILD = """
import json, pathlib, sys

from benchmarks.cases import memory

print(json.dumps(memory.read_and_fit(pathlib.Path(sys.argv[1]))))
"""


class Size(NamedTuple):
    """Documents of both stores, layers with two poolings each, and widths of features and of raw pixels."""

    small: int
    large: int
    layers: int
    width: int
    pixel_width: int


def write_store(folder: Path, documents: int, size: Size, seed: int = 0) -> None:
    """Write a store of made-up features as a run does, batch by batch."""
    generator = np.random.default_rng(seed)
    names = [f"llm.{number:02d}" for number in range(size.layers - 2)]
    layers = [
        StoredLayer("connector", "connector", (MEAN, LAST), (size.width, size.width)),
        *(StoredLayer(name, "llm", (MEAN, LAST), (size.width, size.width)) for name in [*names, "llm.norm"]),
        StoredLayer(PIXELS, "control", (MEAN,), (size.pixel_width,)),
    ]
    write_header(folder, Header("memory", "made up", LABELS, "", "none", "", tuple(layers)))
    sites = [f"{layer.name}/{pooling}" for layer in layers[:-1] for pooling in layer.poolings]
    centres = generator.standard_normal((len(LABELS), size.width), dtype=np.float32)
    kinds = generator.integers(0, 200, (8, size.pixel_width)).astype(np.float32)
    writer = Writer(folder, rank=0)
    try:
        for start in range(0, documents, SHARD_ROWS):
            numbers = np.arange(start, min(start + SHARD_ROWS, documents))
            truth = numbers // GROUP % len(LABELS)
            noise = generator.standard_normal((len(sites), len(numbers), size.width), dtype=np.float32)
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
    """Call :func:`read_and_fit` in a fresh process.

    Raises:
        DataError: It failed.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command, environment = [sys.executable, "-c", _CHILD, str(folder)], {**os.environ, "PYTHONPATH": path}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if child.returncode != 0:
        raise DataError(
            f"Expected the probes of {folder} to be fitted, got status {child.returncode}: "
            f"{shown(child.stderr.strip()[-300:])}. Run `pytest tests/probes`."
        )
    peaks: dict[str, dict[str, float]] = json.loads(child.stdout.splitlines()[-1])
    return peaks


def check(ours: Mapping[str, Any], baseline: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check that both stores have documents in the same folds, and return their peaks."""
    folds = [sorted(side["rows"]) for side in (ours, baseline)]
    expect(folds[0] == folds[1], "the same folds", f"{folds[0]} and {folds[1]}", "tests/probes")
    facts: dict[str, Any] = {}
    for name, side in (("large", ours), ("small", baseline)):
        facts |= {f"{name}_{fold}_rows": count for fold, count in side["rows"].items()}
        facts |= {f"{name}_mb_after_{stage}": round(value) for stage, value in side["by_stage"].items()}
    return facts


def setup(run: Run) -> Sides:
    """Write both stores.

    Raises:
        DataError: This is not Linux.
    """
    if peak_memory_mb() is None:
        raise DataError("Expected /proc/self/status, which holds a process's peak memory, got none. Run it on Linux.")
    folders = {documents: run.folder / str(documents) for documents in (run.size.large, run.size.small)}
    for documents, folder in folders.items():
        write_store(folder, documents, run.size)

    return Sides(
        ours=partial(peaks_in_child, folders[run.size.large]),
        baseline=partial(peaks_in_child, folders[run.size.small]),
        check=check,
        warm_up=lambda: None,
        measure=lambda peaks: float(peaks["by_stage"][STAGES[-1]]),
        facts=run.size._asdict(),
    )


BENCHMARK = Benchmark(
    name="memory",
    ours="probes of a store of 100,000 documents",
    baseline="probes of a store of 10,000 documents",
    setup=setup,
    sizes={"full": Size(10_000, 100_000, 70, 32, 3072), "quick": Size(640, 1_280, 3, 8, 16)},
    targets={("full", "cpu"): 1.10},
    kind="overhead",
    repeats=1,
    unit="mb",
)
