"""What this package adds to the start of lmms-eval: ``import lmms_eval.models``, which runs our entry point.

Each import is timed inside a process of its own, around the import alone, so that the start of Python does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import compare
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.errors import PluginError, shown

TARGET = Target("at most", 1.15)
GOAL_S = 0.15
"""Seconds that the import may take longer."""

_DISTRIBUTION, _GROUP = "medmllm-plugins", "lmms_eval.models"

# Our entry point is left out of what importlib.metadata selects for the host; nothing else differs. The filter is put
# in place while the clock runs, because it needs importlib.metadata, which the host imports too: imported before, that
# large module would be missing from one time or from both. The filter itself costs microseconds.
_CHILD = """
import sys, time

group, ours, left_out = sys.argv[1:]
start = time.perf_counter()
if left_out == "yes":
    import importlib.metadata as metadata

    select = metadata.EntryPoints.select

    def filtered(self, **params):
        found = select(self, **params)
        if params.get("group") != group:
            return found
        return metadata.EntryPoints(entry for entry in found if entry.dist.name != ours)

    metadata.EntryPoints.select = filtered
import lmms_eval.models
seconds = time.perf_counter() - start
modules, models = sorted(sys.modules), len(lmms_eval.models.AVAILABLE_MODELS)

import json
print(json.dumps({"seconds": seconds, "modules": modules, "models": models}))
"""


@dataclass(frozen=True, slots=True)
class Import:
    """One import of ``lmms_eval.models`` in a fresh process.

    Attributes:
        seconds: how long it took.
        modules: names of all modules that the process then had.
        models: how many models lmms-eval then knew.
    """

    seconds: float
    modules: frozenset[str]
    models: int

    @property
    def ours(self) -> bool:
        """Whether our entry point ran."""
        return "medmllm_plugins.host.entry_point" in self.modules


def import_once(cache: Path, *, left_out: bool) -> Import:
    """Import ``lmms_eval.models`` in a fresh process, our entry point in force or left out.

    Args:
        cache: where byte code is kept, so that it is there from the second import on, as pip leaves it. A checkout may
            have none, and where ``PYTHONDONTWRITEBYTECODE`` is set none would ever come.
        left_out: whether our entry point is left out.

    Raises:
        PluginError: the import failed, or our entry point was in force where it should not be, or the reverse.
    """
    # -P: the installed package is measured, not the folder that this was started in.
    command = [sys.executable, "-P", "-c", _CHILD, _GROUP, _DISTRIBUTION, "yes" if left_out else "no"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise PluginError(
            f"Expected `import lmms_eval.models` to succeed in {sys.executable}, but it ended with status "
            f"{done.returncode}: {shown(done.stderr.strip()[-100:])}. See `medmllm doctor`."
        )
    # The host may print warnings to the same stream, before our line.
    raw = json.loads(done.stdout.splitlines()[-1])
    found = Import(float(raw["seconds"]), frozenset(raw["modules"]), int(raw["models"]))
    if found.ours == left_out:
        state = "left out" if left_out else "in force"
        raise PluginError(
            f"Expected the entry point of {_DISTRIBUTION} in {_GROUP} to be {state}, but it was not: "
            f"install the package once, with `{sys.executable} -m pip install .`, and see `medmllm plugins`."
        )
    return found


def run(settings: Settings) -> Record:
    """Compare the import with our entry point to the import without.

    Raises:
        PluginError: this package is not installed, or the import fails.
    """
    if not any(entry.dist and entry.dist.name == _DISTRIBUTION for entry in metadata.entry_points(group=_GROUP)):
        raise PluginError(
            f"Expected {_DISTRIBUTION} to be installed with an entry point in {_GROUP}, but found none: "
            f"run `{sys.executable} -m pip install .` in the checkout."
        )
    with TemporaryDirectory() as folder:
        cache = Path(folder)
        # Not timed: these write the byte code and fill the file cache. Their modules are compared.
        with_ours, without = import_once(cache, left_out=False), import_once(cache, left_out=True)
        comparison = compare(
            lambda: import_once(cache, left_out=False).seconds,
            lambda: import_once(cache, left_out=True).seconds,
            repeats=settings.repeats,
        )
    difference = comparison.numerator.median - comparison.denominator.median
    added = with_ours.modules - without.modules
    return Record(
        settings=settings,
        sides=(
            ("with", "import lmms_eval.models, our entry point in force"),
            ("without", "the same, our entry point filtered out of importlib.metadata"),
        ),
        comparison=comparison,
        target=TARGET,
        details={
            "difference_s": difference,
            "difference_goal_s": GOAL_S,
            "difference_met": difference < GOAL_S,
            "torch_imported_by_us": "torch" in added,
            "modules_added": len(added),
            "models_added": with_ours.models - without.models,
        },
    )
