"""``python -m benchmarks gpu``: the benchmarks that need a GPU in one run, each with the device's limit beside it."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from benchmarks.harness import QUICK, Record, load, run
from medmllm_plugins.errors import MedMLLMError, OptionError, one_line

NAME: Final = "gpu"
SIZES: Final = ("full", "tiny")
MINUTES: Final = 8.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark of the suite.

    Attributes:
        name: of the benchmark.
        size: of the benchmark.
        repeats: timed runs of each side.
        times_limit: how many times the device's limit it may take; ``None`` where nothing is promised.
    """

    name: str
    size: str
    repeats: int
    times_limit: float | None = None


# The most important first: where time runs out, the last are left out.
FULL: Final = (
    Entry("generation", "3b", 2, times_limit=2.0),
    Entry("label_scoring", "3b", 3),
    Entry("capture", "3b", 3),
    Entry("patching", "3b", 1),
    Entry("attribution", "3b", 1),
    Entry("probe_fit", "gpu", 1),
    Entry("paper_protocol", "3b", 1),
    Entry("host_wrapper", "full", 3),
    Entry("generation", "7b", 1, times_limit=2.0),
    Entry("label_scoring", "7b", 3),
    Entry("capture", "7b", 2),
    Entry("patching", "7b", 1),
    Entry("attribution", "7b", 1),
)


def entries(size: str) -> tuple[Entry, ...]:
    """Return the entries of ``"full"``, or of ``"tiny"``: each benchmark once, at the size that takes seconds."""
    if size not in SIZES:
        raise OptionError(f"gpu: expected --size to be {' or '.join(SIZES)}, got {size!r}. Use `--size {SIZES[0]}`.")
    if size == "full":
        return FULL
    return tuple(Entry(name, QUICK, 1) for name in dict.fromkeys(entry.name for entry in FULL))


def run_suite(*, device: str = "cuda", size: str = "full", minutes: float = MINUTES, as_json: bool = False) -> int:
    """Run the suite and print each record as soon as it is there.

    A benchmark that cannot run is reported, and the next one begins.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        size: ``"full"`` or ``"tiny"``.
        minutes: no benchmark begins after this time.
        as_json: print one JSON object on one line for each.

    Returns:
        0 if all ran, 2 if one could not run or was left out.

    Raises:
        OptionError: there is no such size.
    """
    begin, failed = perf_counter(), 0
    for entry in entries(size):
        passed = perf_counter() - begin
        if passed > 60 * minutes:
            _report_failure(entry, f"left out: {passed / 60:.1f} of {minutes:g} minutes have passed", as_json)
            failed += 1
            continue
        try:
            record = run(load(entry.name), device=device, size=entry.size, repeats=entry.repeats, limits=True)
        # A device can fail in many ways (memory, kernels, drivers); the other benchmarks are still worth running.
        except (MedMLLMError, RuntimeError, ImportError) as error:
            _report_failure(entry, one_line(error)[:300], as_json)
            failed += 1
        else:
            _show(record, entry, perf_counter() - begin, as_json)
        _free()
    return 2 if failed else 0


def _show(record: Record, entry: Entry, passed: float, as_json: bool) -> None:
    times = record.details.get("times_limit")
    within = None if entry.times_limit is None or times is None else times <= entry.times_limit
    if as_json:
        facts: dict[str, Any] = {"times_limit_target": entry.times_limit, "within_limit": within}
        print(json.dumps({**record.to_dict(), **facts, "suite_s": round(passed, 1)}), flush=True)
        return
    lines = [record.to_text()]
    if within is not None:
        lines.append(
            f"    {times:.2f} times the limit, target at most {entry.times_limit:g}: {'met' if within else 'MISSED'}"
        )
    print("\n".join([*lines, f"    {passed:.0f} s since the start"]), flush=True)


def _report_failure(entry: Entry, reason: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": entry.name, "size": entry.size, "error": reason}), flush=True)
    print(f"{entry.name} ({entry.size}): {reason}", file=sys.stderr, flush=True)


def _free() -> None:
    """Give back the memory of a benchmark's models before the next one loads its own."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
