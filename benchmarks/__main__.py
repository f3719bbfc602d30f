"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import BOUNDS, QUICK, Benchmark, run
from medmllm_plugins.errors import MedMLLMError, OptionError


def names() -> list[str]:
    """Return the names of all benchmarks: one for each file in cases/."""
    return sorted(path.stem for path in (Path(__file__).parent / "cases").glob("[a-z]*.py"))


def load(name: str) -> Benchmark:
    """Import a benchmark's declaration, or raise :class:`OptionError` if there is none of that name."""
    if name not in names():
        raise OptionError(f"Expected the name of a benchmark ({', '.join(names())}), got {name!r}. See `--list`.")
    benchmark: Benchmark = importlib.import_module(f"benchmarks.cases.{name}").BENCHMARK
    return benchmark


def describe(benchmark: Benchmark) -> str:
    """Return what ``--list`` shows of a benchmark."""
    bound = BOUNDS[benchmark.kind]
    targets = ", ".join(f"{size} {device} {bound} {value:g}" for (size, device), value in benchmark.targets.items())
    return (
        f"{benchmark.name}: {benchmark.kind}, target {targets or 'none'}\n"
        f"    baseline  {benchmark.baseline}\n    ours      {benchmark.ours}\n"
        f"    sizes {', '.join(benchmark.sizes)}; devices {', '.join(benchmark.devices)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 once all benchmarks have run, met or not, and 2 when one could not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Compare this package with what people use now.", allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run")
    parser.add_argument("--list", action="store_true", help="list the benchmarks; also without a name")
    parser.add_argument("--quick", action="store_true", help="run a tiny size once, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line for each benchmark")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--size", help="one of the benchmark's sizes; by default its first")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed runs of each side")
    arguments = parser.parse_args(argv)
    if arguments.list or not arguments.names:
        print("\n".join(describe(load(name)) for name in names()))
        return 0
    size = QUICK if arguments.quick else arguments.size
    try:
        for benchmark in [load(name) for name in arguments.names]:
            record = run(benchmark, device=arguments.device, size=size, repeats=arguments.repeats)
            print(json.dumps(record.to_dict()) if arguments.json else record.to_text(), flush=True)
    except MedMLLMError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
