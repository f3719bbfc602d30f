"""Run fuzz targets, or one case of one: ``PYTHONPATH=tests python -m fuzz nifti --seed 0 --case 17``."""

from __future__ import annotations

import argparse
import importlib
import tempfile
import traceback
from pathlib import Path

from fuzz.harness import run_jobs
from fuzz.target import GROUPS
from fuzz.worker import Job, make_target, write_case


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("names", nargs="+", help=f"targets, or groups of them: {', '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--case", type=int, help="read this case alone, in this process")
    parser.add_argument("--save", type=Path, help="where the files of faults, or of the case, are kept")
    parser.add_argument("--check-malloc", action="store_true", help="with glibc's checks of the heap")
    arguments = parser.parse_args()
    for group, module in GROUPS.items():
        if group not in arguments.names and not _wanted(group, module, arguments.names):
            continue
        targets = list(importlib.import_module(module).TARGETS)
        chosen = [name for name in targets if group in arguments.names or name in arguments.names]
        folder = Path(arguments.save or tempfile.mkdtemp(prefix="fuzz-"))
        if arguments.case is not None:
            target = make_target(group, chosen[0])
            write_case(folder, target.case(target.seeds(), arguments.seed, arguments.case))
            print(folder)
            try:
                print(f"read: {target.read(folder)!r}"[:2000])
            except Exception:
                traceback.print_exc()
            continue
        jobs = [Job(group, name, arguments.seed, 0, arguments.cases) for name in chosen]
        outcome = run_jobs(jobs, folder / group, fork=group == "models", check_malloc=arguments.check_malloc)
        for name in chosen:
            print(
                f"{name}: {outcome.cases.get(name)} cases, {outcome.accepted.get(name)} read, "
                f"{outcome.refused.get(name)} refused, {outcome.seconds.get(name)} s"
            )
        print(outcome.report(folder / group / "faults"), flush=True)


def _wanted(group: str, module: str, names: list[str]) -> bool:
    return any(name not in GROUPS for name in names) and bool(set(importlib.import_module(module).TARGETS) & set(names))


if __name__ == "__main__":
    main()
