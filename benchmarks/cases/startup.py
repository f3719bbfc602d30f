"""Time this package adds to ``import lmms_eval.models``, each time measured in a fresh process."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Benchmark, Comparison, Details, ResultsDifferError, Run, Sides, in_new_process

ENTRY_POINT = "medmllm_plugins.host.entry_point"
# Our entry point is left out of what importlib.metadata selects for the host; nothing else differs. The filter is put
# in place while the clock runs, because it needs importlib.metadata, which the host imports too: imported before, that
# large module would be missing from one time or from both. The filter itself costs microseconds.
_CHILD = """
import sys, time

start = time.perf_counter()
if sys.argv[1] == "without":
    import importlib.metadata as metadata

    select = metadata.EntryPoints.select

    def filtered(self, **params):
        entries = select(self, **params)
        if params.get("group") != "lmms_eval.models":
            return entries
        return metadata.EntryPoints(entry for entry in entries if entry.dist.name != "medmllm-plugins")

    metadata.EntryPoints.select = filtered
import lmms_eval.models
seconds = time.perf_counter() - start
modules, models = sorted(sys.modules), len(lmms_eval.models.AVAILABLE_MODELS)

import json
print(json.dumps({"seconds": seconds, "modules": modules, "models": models}))
"""


def import_once(cache: Path, side: str) -> dict[str, Any]:
    """Import ``lmms_eval.models`` in a fresh process, ``"with"`` or ``"without"`` our entry point.

    Byte code is kept in the folder ``cache``, so that it exists from the second import on, as pip leaves it.

    Returns:
        The seconds, the names of all modules then loaded, and the number of models lmms-eval then knew.
    """
    # -P: the installed package is measured, not the folder that this was started in.
    cached = {"PYTHONPYCACHEPREFIX": str(cache)}
    result: dict[str, Any] = in_new_process(_CHILD, side, fix="Run `medmllm doctor`.", options=("-P",), **cached)
    return result


def check(ours: Details, baseline: Details) -> Details:
    """Check that our entry point ran on our side alone, and return what it adds."""
    ran = [ENTRY_POINT in side["modules"] for side in (ours, baseline)]
    if ran != [True, False]:
        raise ResultsDifferError(
            f"Expected our entry point to run on our side alone, got (ours, baseline) {ran}. "
            f"Install the package once, with `{sys.executable} -m pip install .`."
        )
    added = set(ours["modules"]) - set(baseline["modules"])
    models = ours["models"] - baseline["models"]
    return {"torch_imported_by_us": "torch" in added, "modules_added": len(added), "models_added": models}


def setup(run: Run) -> Sides:
    """Prepare the imports; the warm-up writes the byte code."""

    def details(comparison: Comparison) -> Details:
        return {"difference_s": median(comparison.ours) - median(comparison.baseline)}

    ours, baseline = (partial(import_once, run.folder, side) for side in ("with", "without"))
    return Sides(ours, baseline, check, measure=lambda result: float(result["seconds"]), details=details)


BENCHMARK = Benchmark(
    name="startup",
    ours="import lmms_eval.models, our entry point active",
    baseline="the same, our entry point filtered out of importlib.metadata",
    setup=setup,
    sizes={"full": {}, "quick": {}},
    targets={("full", "cpu"): 1.15},
    limits={"difference_s": 0.15},
    kind="overhead",
    repeats=15,
)
