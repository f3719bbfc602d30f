"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import gpu_suite
from benchmarks.harness import BOUNDS, QUICK, Benchmark, load, names, run
from medmllm_plugins.errors import MedMLLMError, OptionError


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
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="benchmarks to run, or `gpu` for all that a GPU is needed for"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks; also without a name")
    parser.add_argument("--quick", action="store_true", help="run a tiny size once, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line for each benchmark")
    parser.add_argument("--device", help="cpu (default) or cuda (default of `gpu`)")
    parser.add_argument("--size", help="one of the benchmark's sizes; by default its first; for `gpu` full or tiny")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="for `gpu`: begin no benchmark after this time (default 8)"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="timed runs of each side")
    arguments = parser.parse_args(argv)
    if arguments.list or not arguments.names:
        print("\n".join(describe(load(name)) for name in names()))
        return 0
    size = QUICK if arguments.quick else arguments.size
    device = arguments.device
    try:
        if gpu_suite.NAME in arguments.names:
            return _run_suite(arguments)
        if arguments.minutes is not None:
            raise OptionError("Expected --minutes with `gpu` alone.")
        for benchmark in [load(name) for name in arguments.names]:
            record = run(benchmark, device=device or "cpu", size=size, repeats=arguments.repeats)
            print(json.dumps(record.to_dict()) if arguments.json else record.to_text(), flush=True)
    except MedMLLMError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _run_suite(arguments: argparse.Namespace) -> int:
    """Run the suite of the GPU.

    Raises:
        OptionError: other benchmarks or options are named with it.
    """
    if arguments.names != [gpu_suite.NAME] or arguments.quick or arguments.repeats is not None:
        raise OptionError("Expected `gpu` alone, with --device, --size, --minutes or --json.")
    return gpu_suite.run_suite(
        device=arguments.device or "cuda",
        size=arguments.size or "full",
        minutes=gpu_suite.MINUTES if arguments.minutes is None else arguments.minutes,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    raise SystemExit(main())
