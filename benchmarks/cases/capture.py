"""Cost of recording features: answers with the features of every stage written to a store, against without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.harness import Benchmark, Comparison, Details, Run, Sides, expect, timed
from benchmarks.models import BATCH, QUESTION, answer, answer_and_record, dtype_name, model_of_size, phantom_documents
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.results.feature_store import FeatureStore

Recorded = tuple[list[str], Path]
"""Answers, and the folder of the store."""


def check(ours: Recorded, baseline: Sequence[str], *, exact: bool) -> Details:
    """Check that recording changed no answer and that every document is in the store."""
    texts, folder = ours
    store = FeatureStore(folder)
    differ = sum(a != b for a, b in zip(texts, baseline, strict=True)) if exact else 0
    got = f"{differ} different answers and features of {len(store)} of {len(texts)} documents"
    expect(differ == 0 and len(store) == len(texts), "the same answers, and all features stored", got, "tests/features")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sites = sum(len(layer.poolings) for layer in store.header.layers)
    return {"layers": len(store.header.layers), "sites": sites, "bytes_a_document": round(size / len(texts))}


def setup(run: Run, documents: int) -> Sides:
    """Load the model; the comparison with control features of a random encoder is a part."""
    model, members = model_of_size(run.size, run.device), phantom_documents({"test": documents})
    numbers = count()

    def recorded(random_encoder: bool, last: int | None = None) -> Recorded:
        folder = run.folder / str(next(numbers))
        return answer_and_record(model, members[:last], folder, random_encoder=random_encoder), folder

    def details(comparison: Comparison) -> Details:
        example = model.loaded.prepare([QUESTION], [members[0].picture])
        trials = [timed(lambda: unused_layers(model.loaded, example), run.device)[0] for _ in range(run.repeats)]
        return {"unused_layers_share": round(min(trials) / median(comparison.baseline), 4)}

    plain, random_encoder = [
        Sides(
            ours=partial(recorded, random_encoder),
            baseline=partial(answer, model, members),
            check=partial(check, exact=model.exact),
            warm_up=partial(recorded, random_encoder, 2 * BATCH),
            items=len(members),
            details=None if random_encoder else details,
            model=model.loaded.model,
            dtype=dtype_name(model),
        )
        for random_encoder in (False, True)
    ]
    return replace(plain, parts={"random_encoder": random_encoder})


BENCHMARK = Benchmark(
    name="capture",
    ours="answers and label scores, features of every stage recorded",
    baseline="answers and label scores alone",
    setup=setup,
    sizes={"tiny": {"documents": 480}, "3b": {"documents": 160}, "7b": {"documents": 160}, "quick": {"documents": 5}},
    targets={("tiny", "cpu"): 1.10, ("3b", "cuda"): 1.05, ("7b", "cuda"): 1.05},
    kind="overhead",
    devices=("cpu", "cuda"),
)
