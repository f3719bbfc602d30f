"""The command line: names a benchmark, runs it, prints its record."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import catalogue
from medmllm_plugins.errors import MedMLLMError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 once a benchmark has run, whether or not it met its target, or when names were listed; 2 when it could not
        run.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        parser.print_help()
        return 0
    try:
        settings = catalogue.settings_for(
            arguments.name, device=arguments.device, size=arguments.size, repeats=arguments.repeats
        )
        record = catalogue.run(settings)
    except MedMLLMError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record.to_dict()) if arguments.json else record.to_text())
    return 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12}{entry.summary}" for name, entry in catalogue.BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures this package side by side with what it is compared to.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the benchmark to run; without it, list them")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--size", help="size of the model, where there is one: tiny (default) or 3b")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed runs of each side")
    return parser
