"""The table of benchmarks, and what may be asked of each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.record import Record, Settings
from medmllm_plugins.errors import OptionError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark, not imported before it runs.

    Attributes:
        module: where it stands: a module with a function ``run(settings: Settings) -> Record``.
        summary: what is compared, in one line.
        repeats: how often each side is timed unless the user says otherwise.
        devices: where it can run.
        sizes: sizes of model it knows, its default first; empty where there is no model.
    """

    module: str
    summary: str
    repeats: int
    devices: tuple[str, ...] = ("cpu",)
    sizes: tuple[str, ...] = ()


BENCHMARKS: Mapping[str, Benchmark] = {
    "startup": Benchmark(
        module="benchmarks.startup",
        summary="import lmms_eval.models, with this package's entry point against without",
        repeats=15,
    ),
    "generation": Benchmark(
        module="benchmarks.generation",
        summary="answers in batches of 16 against MedM-VL's reference loop, one image at a time",
        repeats=7,
        devices=("cpu", "cuda"),
        sizes=("tiny", "3b"),
    ),
    "label_scoring": Benchmark(
        module="benchmarks.label_scoring",
        summary="scores of 2, 8 and 14 labels from one prefill against a whole forward pass for each",
        repeats=5,
        devices=("cpu", "cuda"),
        sizes=("tiny", "3b"),
    ),
    "host_wrapper": Benchmark(
        module="benchmarks.host_wrapper",
        summary="answers through the host: our wrapper against its own qwen2_5_vl, on one checkpoint",
        repeats=5,
        devices=("cpu", "cuda"),
    ),
    "readers": Benchmark(
        module="benchmarks.readers",
        summary="images and volumes read ahead in threads against a plain loop",
        repeats=5,
    ),
    "bootstrap": Benchmark(
        module="benchmarks.bootstrap",
        summary="2,000 clustered draws of every metric at once against a loop with scikit-learn",
        repeats=5,
    ),
    "duplicates": Benchmark(
        module="benchmarks.duplicates",
        summary="near-duplicates among 20,000 images against two matrix products over all pairs",
        repeats=1,
    ),
    "probe_fit": Benchmark(
        module="benchmarks.probe_fit",
        summary="probes of 140 layers with grid, controls and shuffled labels against a loop with scikit-learn",
        repeats=1,
        devices=("cpu", "cuda"),
    ),
    "paper_protocol": Benchmark(
        module="benchmarks.paper_protocol",
        summary="the paper's MLP probes of 140 layers trained together against plain PyTorch, one after the other",
        repeats=1,
        devices=("cpu", "cuda"),
        sizes=("tiny", "3b"),
    ),
    "capture": Benchmark(
        module="benchmarks.capture",
        summary="answers with the features of every stage kept against without",
        repeats=3,
        devices=("cpu", "cuda"),
        sizes=("tiny", "3b"),
    ),
    "diagnosis": Benchmark(
        module="benchmarks.diagnosis",
        summary="an evaluation with probes in one pass against a second pass and a loop with scikit-learn",
        repeats=1,
        devices=("cpu", "cuda"),
    ),
    "memory": Benchmark(
        module="benchmarks.memory",
        summary="peak memory of reading and fitting features of 100,000 documents against 10,000",
        repeats=1,
    ),
    "attribution": Benchmark(
        module="benchmarks.attribution",
        summary="attributions at six layers, all in one pass against a call of Captum for each",
        repeats=3,
        devices=("cpu", "cuda"),
    ),
    "report": Benchmark(
        module="benchmarks.report",
        summary="the page of ten models, figures drawn one after the other against on all cores at once",
        repeats=3,
    ),
}


def settings_for(name: str, *, device: str, size: str | None, repeats: int | None) -> Settings:
    """Check what the user asked for, and fill in the defaults.

    Args:
        name: one of :data:`BENCHMARKS`.
        device: ``"cpu"`` or ``"cuda"``.
        size: size of the model; ``None`` for the benchmark's default.
        repeats: timed runs of each side; ``None`` for the benchmark's default.

    Raises:
        OptionError: there is no such benchmark, or it cannot run so.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise OptionError(f"Expected a benchmark's name ({', '.join(BENCHMARKS)}), but got {name!r}.")
    if device not in benchmark.devices:
        raise OptionError(
            f"{name}: expected `--device` to be {' or '.join(benchmark.devices)}, but got {device!r}: "
            f"use `--device {benchmark.devices[0]}`."
        )
    if size is not None and not benchmark.sizes:
        raise OptionError(f"{name}: expected no `--size`, since there is no model, but got {size!r}: leave it out.")
    if size is not None and size not in benchmark.sizes:
        raise OptionError(
            f"{name}: expected `--size` to be {' or '.join(benchmark.sizes)}, but got {size!r}: "
            f"use `--size {benchmark.sizes[0]}`."
        )
    if repeats is not None and repeats < 1:
        raise OptionError(f"{name}: expected `--repeats` to be at least 1, but got {repeats}: use `--repeats 1`.")
    return Settings(
        name=name,
        device=device,
        size=size or (benchmark.sizes[0] if benchmark.sizes else None),
        repeats=benchmark.repeats if repeats is None else repeats,
    )


def run(settings: Settings) -> Record:
    """Run the benchmark that ``settings`` names."""
    record: Record = importlib.import_module(BENCHMARKS[settings.name].module).run(settings)
    return record
