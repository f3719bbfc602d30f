"""What every benchmark shares: its declaration, timing of the two sides turn by turn, and one record."""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, Literal

from medmllm_plugins.errors import DataError, MedMLLMError, OptionError, shown
from medmllm_plugins.utils.environment import package_versions

Kind = Literal["speedup", "overhead"]
Details = Mapping[str, Any]
BOUNDS = {"speedup": "at least", "overhead": "at most"}
QUICK = "quick"


class ResultsDifferError(MedMLLMError):
    """The two sides of a benchmark computed different results, so their times cannot be compared."""


def expect(condition: bool, expected: str, got: str, tests: str) -> None:
    """Raise :class:`ResultsDifferError` unless the condition holds; ``tests`` are those that find the fault."""
    if not condition:
        raise ResultsDifferError(f"Expected {expected} from both sides, got {got}. Run `pytest {tests}`.")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Declaration of one benchmark.

    Attributes:
        name: Name on the command line, and of its file in cases/.
        baseline: What people use instead, or what the cost is compared with.
        setup: Takes the :class:`Run` and the parameters of its size, and prepares both sides.
        sizes: Parameters of each size: the default first, and ``"quick"``, which takes seconds and has no target.
        targets: Bound of the ratio for ``(size, device)``.
        limits: Largest value of some details at the default size.
        kind: Ratio of the medians: ``"speedup"`` is baseline over ours, ``"overhead"`` ours over baseline.
        repeats: Timed runs of each side.
        unit: ``"s"``, or ``"mb"`` for memory in 10^6 bytes.
    """

    name: str
    ours: str
    baseline: str
    setup: Callable[..., Sides]
    sizes: Mapping[str, Mapping[str, Any]]
    targets: Mapping[tuple[str, str], float]
    limits: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "speedup"
    repeats: int = 3
    devices: tuple[str, ...] = ("cpu",)
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Run:
    """Checked settings of one run; ``folder`` is empty and removed afterwards."""

    size: str
    device: str
    repeats: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a benchmark, ready to run.

    Attributes:
        ours: Does the work once and returns its result, as ``baseline`` does.
        check: Takes both results (ours first), raises :class:`ResultsDifferError` unless they agree, and may return
            details for the record.
        warm_up: Replaces the warm-up, in which each side runs once and the results are checked.
        baseline_scale: Factor from the baseline's time to that of the whole work, where it does only a part.
        measure: Value of a result to compare, instead of the seconds it took.
        items: Items of one run, for figures per second.
        details: Further details, computed after the comparison.
        parts: Further comparisons, of which the record holds the ratio.
        model: The transformers model that ours runs, whose forward passes the device's limit counts.
        dtype: Dtype of the arithmetic, for that limit.
        flops: The floating-point operations that the work needs, where they cannot be counted as it runs (in threads).
    """

    ours: Callable[[], Any]
    baseline: Callable[[], Any]
    check: Callable[[Any, Any], Details | None]
    warm_up: Callable[[], Any] | None = None
    baseline_scale: float = 1.0
    measure: Callable[[Any], float] | None = None
    items: int = 0
    details: Callable[[Comparison], Details] | None = None
    parts: Mapping[str, Sides] = field(default_factory=dict)
    model: Any = None
    dtype: str = "float32"
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measured values of both sides, round by round, and the last result of each."""

    ours: tuple[float, ...]
    baseline: tuple[float, ...]
    kind: Kind = "speedup"
    ours_result: Any = None
    baseline_result: Any = None

    @property
    def ratio(self) -> float:
        """Return the ratio of the medians."""
        return self._ratio(median(self.ours), median(self.baseline))

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Return the smallest and largest ratio within a round, where both sides met the same state of the machine."""
        ratios = [self._ratio(*values) for values in zip(self.ours, self.baseline, strict=True)]
        return min(ratios), max(ratios)

    def _ratio(self, ours: float, baseline: float) -> float:
        return baseline / ours if self.kind == "speedup" else ours / baseline


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Do ``work`` once and return the seconds it took and its result; on CUDA the clock waits for the device."""
    gc.collect()
    _synchronise(device)
    start = perf_counter()
    result = work()
    _synchronise(device)
    return perf_counter() - start, result


def wall_and_cpu(name: str, work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that ``work`` takes, by the clock and of the processors, as details of that name."""
    cpu = process_time()
    wall, _ = timed(work)
    return {f"{name}_s": round(wall, 2), f"{name}_cpu_s": round(process_time() - cpu, 2)}


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def in_new_process(code: str, *arguments: str, fix: str, options: tuple[str, ...] = (), **environment: str) -> Any:
    """Run Python code in a fresh process, and return the JSON value in the last line that it prints.

    Raises:
        DataError: It failed; the message ends in ``fix``.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *options, "-c", code, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **environment})
    if child.returncode != 0:
        message = shown(child.stderr.strip()[-300:])
        raise DataError(
            f"Expected a process of {sys.executable} to succeed, got status {child.returncode}: {message}. {fix}"
        )
    return json.loads(child.stdout.splitlines()[-1])


def compare(sides: Sides, kind: Kind, *, repeats: int, device: str) -> Comparison:
    """Measure both sides ``repeats`` times.

    They alternate, and alternate in which goes first, so that a machine that slows down or is busy for a while does not
    favour one of them.
    """
    values: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for round_ in range(repeats):
        for side in (0, 1) if round_ % 2 == 0 else (1, 0):
            seconds, results[side] = timed((sides.baseline, sides.ours)[side], device)
            value = seconds if sides.measure is None else sides.measure(results[side])
            values[side].append(value * (1.0 if side else sides.baseline_scale))
    return Comparison(tuple(values[1]), tuple(values[0]), kind, results[1], results[0])


@dataclass(frozen=True, slots=True)
class Record:
    """Result of one benchmark."""

    benchmark: Benchmark
    run: Run
    comparison: Comparison
    details: Details

    @property
    def target(self) -> float | None:
        """Return the bound of the ratio, or None where nothing is promised for this size and device."""
        return self.benchmark.targets.get((self.run.size, self.run.device.partition(":")[0]))

    @property
    def met(self) -> bool | None:
        """Return whether the ratio and the details are within their bounds, or None without a target."""
        if self.target is None:
            return None
        ratio, speedup = self.comparison.ratio, self.benchmark.kind == "speedup"
        within = all(self.details[name] < limit for name, limit in self.benchmark.limits.items())
        return within and (ratio >= self.target if speedup else ratio <= self.target)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, with the keys that docs/benchmarks.md lists."""
        benchmark, run, comparison = self.benchmark, self.run, self.comparison

        def side(what: str, values: tuple[float, ...]) -> dict[str, Any]:
            statistics = {"median": median(values), "min": min(values), "max": max(values), "runs": list(values)}
            return {"what": what, **{f"{name}_{benchmark.unit}": value for name, value in statistics.items()}}

        ratio = {"kind": benchmark.kind, "ratio": comparison.ratio, "range": list(comparison.ratio_range)}
        bounds = {"target": self.target, "limits": dict(benchmark.limits), "met": self.met}
        names = {"ours": benchmark.ours, "baseline": benchmark.baseline}
        sides = {name: side(what, getattr(comparison, name)) for name, what in names.items()}
        settings = {"repeats": run.repeats, "device": run.device, "size": run.size}
        context = {"details": dict(self.details), "machine": machine(run.device), "versions": package_versions()}
        return {"name": benchmark.name, **ratio, **bounds, **sides, **settings, **context}

    def to_text(self) -> str:
        """Return the record as a table for people."""
        record, unit, (low, high) = self.to_dict(), self.benchmark.unit, self.comparison.ratio_range
        target = "no target"
        if self.target is not None:
            limits = "".join(f", {name} below {limit:g}" for name, limit in self.benchmark.limits.items())
            target = f"target {BOUNDS[record['kind']]} {self.target:g}{limits}: {'met' if self.met else 'MISSED'}"
        where = f"{record['size']}, {record['device']}, {record['repeats']} rounds"
        lines = [
            f"{record['name']} ({where}): {record['kind']} {record['ratio']:.2f} [{low:.2f} to {high:.2f}], {target}"
        ]
        for side in ("baseline", "ours"):
            middle, least, most = (record[side][f"{key}_{unit}"] for key in ("median", "min", "max"))
            spread = f"{middle:.4g} {unit} [{least:.4g} to {most:.4g}]"
            lines.append(f"    {side:<8}  median {spread}  {record[side]['what']}")
        facts = {**self.details, **record["machine"]}
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items())
        return "\n".join([*lines, "    " + ", ".join(shown)])


def names() -> list[str]:
    """Return the names of all benchmarks: one for each file in cases/."""
    return sorted(path.stem for path in (Path(__file__).parent / "cases").glob("[a-z]*.py"))


def load(name: str) -> Benchmark:
    """Import a benchmark's declaration, or raise :class:`OptionError` if there is none of that name."""
    if name not in names():
        raise OptionError(f"Expected the name of a benchmark ({', '.join(names())}), got {name!r}. See `--list`.")
    benchmark: Benchmark = importlib.import_module(f"benchmarks.cases.{name}").BENCHMARK
    return benchmark


def run(
    benchmark: Benchmark,
    *,
    device: str = "cpu",
    size: str | None = None,
    repeats: int | None = None,
    limits: bool = False,
) -> Record:
    """Run a benchmark on ``"cpu"`` or ``"cuda"``, by default at its first size and with its own repeats.

    With ``limits`` the record also has the least time that the device needs for our side (:mod:`benchmarks.limits`).

    Raises:
        OptionError: The benchmark has no such size, or does not run on the device.
        ResultsDifferError: The sides computed different results.
    """
    size = size or next(iter(benchmark.sizes))
    for option, value, choices in (("--device", device, benchmark.devices), ("--size", size, tuple(benchmark.sizes))):
        if value not in choices:
            expected, fix = " or ".join(choices), f"Use `{option} {choices[0]}`."
            raise OptionError(f"{benchmark.name}: expected {option} to be {expected}, got {value!r}. {fix}")
    repeats = (1 if size == QUICK else benchmark.repeats) if repeats is None else repeats
    if repeats < 1:
        raise OptionError(f"{benchmark.name}: expected --repeats to be at least 1, got {repeats}. Use `--repeats 1`.")
    if device != "cpu":
        from medmllm_plugins.models.options import resolve_device

        device = str(resolve_device(device))
    with TemporaryDirectory(prefix="medmllm-benchmark-") as folder:
        settings, parameters = Run(size, device, repeats, Path(folder)), benchmark.sizes[size]
        _reset_peak(device)
        sides = benchmark.setup(settings, **parameters)
        comparison, details = _measure(sides, benchmark.kind, settings)
        if limits:
            details |= _limit(sides, comparison, device)
        return Record(benchmark, settings, comparison, {**parameters, **details})


def _measure(sides: Sides, kind: Kind, settings: Run) -> tuple[Comparison, dict[str, Any]]:
    """Warm up, compare and check the sides; return the comparison and the details."""
    if sides.warm_up is None:
        baseline = sides.baseline()
        sides.check(sides.ours(), baseline)
    else:
        sides.warm_up()
    comparison = compare(sides, kind, repeats=settings.repeats, device=settings.device)
    details = dict(sides.check(comparison.ours_result, comparison.baseline_result) or {})
    if sides.items:
        details["baseline_per_s"] = sides.items / median(comparison.baseline)
        details["ours_per_s"] = sides.items / median(comparison.ours)
    for name, part in sides.parts.items():
        part_comparison, part_details = _measure(part, kind, settings)
        details |= {f"{name}_ratio": round(part_comparison.ratio, 3)}
        details |= {f"{name}_{key}": value for key, value in part_details.items()}
    return comparison, {**details, **(sides.details(comparison) if sides.details else {})}


def _limit(sides: Sides, comparison: Comparison, device: str) -> dict[str, Any]:
    """Return the limit of our side as details: rates of the device, operations, least seconds, and our share."""
    import torch

    from benchmarks.limits import Pass, Work, count_work, measure_rates

    rates = measure_rates(device, getattr(torch, sides.dtype))
    needed = count_work(sides.ours, sides.model) if sides.flops is None else Work(rest=Pass(sides.flops))
    least = needed.seconds(rates)
    return {
        "matrix_tflops_per_s": round(rates.flops / 1e12, 3),
        "copy_gb_per_s": round(rates.bytes / 1e9, 1),
        "tflop": needed.flops / 1e12,
        "forward_passes": len(needed.passes),
        "limit_s": least,
        "times_limit": median(comparison.ours) / least if least else None,
    }


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on besides the settings.

    ``load`` is that of the last minute: near or above the number of CPUs, other processes were running too. ``peak_mb``
    is the peak resident memory of this process, ``accelerator_peak_mb`` that of tensors on the device.
    """
    torch = sys.modules.get("torch")
    facts = {"architecture": platform.machine(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    facts["threads"] = torch.get_num_threads() if torch else None
    on_device = torch is not None and device.startswith("cuda")
    facts["accelerator"] = torch.cuda.get_device_name(device) if torch and on_device else None
    facts["accelerator_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6 if torch and on_device else None
    return {**facts, "peak_mb": peak_memory_mb()}


def peak_memory_mb() -> float | None:
    """Return the peak resident memory of this process in MB (10^6 bytes), or None where the kernel does not say.

    ``VmHWM`` starts at zero in each program, which ``ru_maxrss`` does not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6
