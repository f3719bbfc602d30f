"""Peak memory of reading and fitting a feature store of 100,000 documents against one of 10,000.

Each store is opened, its documents are arranged and its probes are fitted in a process of its own, whose peak of
resident memory the kernel tells: ``VmHWM``, which begins anew in each program, as ``ru_maxrss`` does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.measure import Comparison, Times
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.features.control_features import PIXELS
from medmllm_plugins.features.store import FeatureStore, Header, StoredLayer, seal, write_header
from medmllm_plugins.features.store_writer import SHARD_ROWS, FeatureBatch, Writer
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import LAST, MEAN

SMALL, LARGE = 10_000, 100_000
LAYERS, WIDTH, PIXEL_WIDTH = 70, 32, 3072
"""Places with two poolings each, the width of their features, and that of the raw pixels as the package keeps them."""
LABELS = ("a", "b", "c", "d")
GROUP = 4
"""Documents of a group."""
HELD_OUT = 10
"""Of so many groups one is in the validation and one in the test fold."""
OPTIONS = Options(controls=1, shuffles=1)
"""The whole grid; fewer other label sets than a run has, which cost time and do not depend on the documents."""
STAGES = ("import", "open", "samples", "fit")
_CHILD = """
import json, pathlib, sys

from benchmarks import memory

print(json.dumps(memory.read_and_fit(pathlib.Path(sys.argv[1]))))
"""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peaks of resident memory in MB (10^6 bytes).

    Attributes:
        by_stage: until the end of each of :data:`STAGES`; the last is that of the whole.
        rows: documents by fold that were fitted on, chosen on and tested on.
    """

    by_stage: Mapping[str, float]
    rows: Mapping[str, int]

    @property
    def whole(self) -> float:
        """The highest."""
        return self.by_stage[STAGES[-1]]


def write(folder: Path, documents: int, seed: int = 0) -> None:
    """Write a store as a run does, a batch of made-up features after the other."""
    generator = np.random.default_rng(seed)
    places = [f"llm.{number:02d}" for number in range(LAYERS - 2)]
    layers = [
        StoredLayer("connector", "connector", (MEAN, LAST), (WIDTH, WIDTH)),
        *(StoredLayer(name, "llm", (MEAN, LAST), (WIDTH, WIDTH)) for name in [*places, "llm.norm"]),
        StoredLayer(PIXELS, "control", (MEAN,), (PIXEL_WIDTH,)),
    ]
    write_header(folder, Header("memory", "made up", LABELS, "", "none", "", tuple(layers)))
    names = [f"{layer.name}/{pooling}" for layer in layers[:-1] for pooling in layer.poolings]
    centres = generator.standard_normal((len(LABELS), WIDTH), dtype=np.float32)
    kinds = generator.integers(0, 200, (8, PIXEL_WIDTH)).astype(np.float32)
    writer = Writer(folder, rank=0)
    try:
        for start in range(0, documents, SHARD_ROWS):
            numbers = np.arange(start, min(start + SHARD_ROWS, documents))
            truth = numbers // GROUP % len(LABELS)
            noise = generator.standard_normal((len(names), len(numbers), WIDTH), dtype=np.float32)
            pixels = kinds[numbers // GROUP % 7 % len(kinds)]
            pixels = pixels + generator.integers(0, 50, pixels.shape, dtype=np.int16)
            records = [_record(int(number), LABELS[label]) for number, label in zip(numbers, truth, strict=True)]
            stack = torch.from_numpy(noise + 0.3 * centres[truth])
            writer.add(FeatureBatch(records, [names], [stack], {f"{PIXELS}/{MEAN}": pixels.astype(np.float32)}))
    finally:
        writer.close()
    seal(folder)


def _record(number: int, label: str) -> dict[str, object]:
    """As the wrapper tells of a document: label scores are there where they are asked for."""
    group = number // GROUP
    fold = {0: "validation", 1: "test"}.get(group // len(LABELS) % HELD_OUT, "train")
    scores = None if fold == "train" else [-1.0, -2.0, -3.0, -4.0]
    told = {"id": f"{number:08d}", "document": f"{number:08d}", "group": f"{group:08d}", "fold": fold, "label": label}
    tokens = None if fold == "train" else [1, 2, 3, 4]
    return {**told, "answer": label, "scores": scores, "blank": scores, "label_tokens": tokens}


def read_and_fit(folder: Path) -> dict[str, dict[str, float]]:
    """Do it in this process, and say how much memory it took."""
    peaks = [_peak()]
    store = FeatureStore(folder)
    peaks.append(_peak())
    samples = read_labelled_features(store)
    peaks.append(_peak())
    fit_probes(store, samples, OPTIONS, torch.device("cpu"))
    peaks.append(_peak())
    # The kernel estimates resident pages from counters by core, so a later reading may lie a few pages lower.
    by_stage = dict(zip(STAGES, accumulate(peaks, max), strict=True))
    return {"by_stage": by_stage, "rows": {fold: len(rows) for fold, rows in samples.rows.items()}}


def _peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6


def peaks(folder: Path) -> Peaks:
    """Read and fit a store in a fresh process.

    Raises:
        DataError: it failed.
    """
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode != 0:
        raise DataError(
            f"Expected the probes of {folder} to be fitted, but it ended with status {done.returncode}: "
            f"{shown(done.stderr.strip()[-300:])}"
        )
    return Peaks(**json.loads(done.stdout.splitlines()[-1]))


def run(settings: Settings) -> Record:
    """Compare the two stores.

    Raises:
        DataError: a store could not be read or fitted, or this is not Linux.
    """
    if not Path("/proc/self/status").is_file():
        raise DataError("Expected /proc/self/status, which tells a process's peak of memory, found none: run on Linux.")
    found: dict[int, list[Peaks]] = {LARGE: [], SMALL: []}
    with TemporaryDirectory(prefix="medmllm-memory-") as name:
        for documents, one in found.items():
            folder = Path(name) / str(documents)
            write(folder, documents)
            one += [peaks(folder) for _ in range(settings.repeats)]
    large, small = (Times(tuple(one.whole for one in found[documents])) for documents in (LARGE, SMALL))
    return Record(
        settings=settings,
        sides=(("large", f"a store of {LARGE:,} documents"), ("small", f"a store of {SMALL:,} documents")),
        comparison=Comparison(large, small),
        target=Target("at most", 1.10),
        details={
            "layers_and_poolings": 2 * LAYERS,
            "width": WIDTH,
            "pixel_width": PIXEL_WIDTH,
            **{f"large_{fold}_rows": count for fold, count in found[LARGE][-1].rows.items()},
            **{f"small_{fold}_rows": count for fold, count in found[SMALL][-1].rows.items()},
            **{f"large_mb_after_{stage}": round(value) for stage, value in found[LARGE][-1].by_stage.items()},
            **{f"small_mb_after_{stage}": round(value) for stage, value in found[SMALL][-1].by_stage.items()},
            "threads": torch.get_num_threads(),
        },
        unit="mb",
    )
