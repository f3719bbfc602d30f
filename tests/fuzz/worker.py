"""Works through cases in a process of its own and says which one it is at, so that whoever waits can name the case."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fuzz.target import Files, Target

MEMORY: Final = 1 << 30
"""Bytes of address space that a case may take beyond what the process had before."""
OUTPUT: Final = 64 * 1024
"""Bytes that a case may write to standard output and standard error."""
MANY: Final = 40
"""Most different faults that are reported of a target."""
_PERTURB: Final = -6  # M_PERTURB of glibc's malloc.h


@dataclass(frozen=True, slots=True)
class Job:
    """Cases to work through.

    Attributes:
        group: key of :data:`fuzz.target.GROUPS`, or a module with ``TARGETS``.
        target: the target's name.
        seed: of the random cases.
        first: number of the first case.
        count: of cases.
    """

    group: str
    target: str
    seed: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that a case broke.

    Attributes:
        target: the target's name.
        seed: of the random cases.
        case: its number.
        rule: ``error``, ``message``, ``seconds``, ``memory``, ``output``, ``unstable``, ``seed``, ``crash`` or
            ``hang``.
        what: what happened.
        location: where, so that cases with one cause can be counted together.
    """

    target: str
    seed: int
    case: int
    rule: str
    what: str
    location: str = ""


def make_target(group: str, name: str) -> Target:
    """Import a group's module and make one of its targets."""
    from fuzz.target import GROUPS

    targets: Mapping[str, Target] = importlib.import_module(GROUPS.get(group, group)).TARGETS
    return targets[name]


def write_case(folder: Path, files: Files) -> None:
    """Write the files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class Progress:
    """Job and case in sixteen bytes of a file, which outlive the process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    def at(self, job: int, case: int) -> None:
        """Note where the worker is."""
        os.pwrite(self._file.fileno(), job.to_bytes(8, "little") + case.to_bytes(8, "little"), 0)

    def read(self) -> tuple[int, int]:
        """Return job and case; -1 as the case before the first one of a job."""
        content = os.pread(self._file.fileno(), 16, 0)
        if len(content) < 16:
            return 0, -1
        case = int.from_bytes(content[8:], "little")
        return int.from_bytes(content[:8], "little"), -1 if case == 2**63 else case


def work(jobs: list[Job], first_job: int, folder: Path) -> None:
    """Work through jobs; faults and counts go to ``folder/results.jsonl``, progress to ``folder/progress``.

    Standard output and standard error have to be files already.
    """
    progress = Progress(folder / "progress")
    with (folder / "results.jsonl").open("a", encoding="utf-8") as results:
        for index, job in enumerate(jobs[first_job:], start=first_job):
            progress.at(index, 2**63)
            target = make_target(job.group, job.target)
            for record in _cases(target, job, folder, lambda case, index=index: progress.at(index, case)):  # type: ignore[misc]
                results.write(json.dumps(record) + "\n")
                results.flush()
        progress.at(len(jobs), 0)


def _cases(target: Target, job: Job, folder: Path, at: object) -> Iterator[dict[str, object]]:
    assert callable(at)
    seeds = target.seeds()
    seen: set[tuple[str, str]] = set()
    accepted = refused = done = 0
    begun = time.process_time()
    with _limited(folder, target, seeds):
        for number in range(job.first, job.first + job.count):
            at(number)
            files = target.case(seeds, job.seed, number)
            here = folder / "case" / f"{target.name}-{number}"
            write_case(here, files)
            ok, faults = run_case(target, here)
            shutil.rmtree(here)
            if number < len(seeds) and not ok:
                faults.append(("seed", f"{list(seeds)[number]} is whole, but was not read", "seed"))
            accepted, refused, done = accepted + ok, refused + (not ok), done + 1
            for rule, what, location in faults:
                if (rule, location) not in seen and len(seen) < MANY:
                    seen.add((rule, location))
                    yield {"fault": asdict(Fault(target.name, job.seed, number, rule, what, location))}
    yield {
        "done": {"target": target.name, "cases": done, "accepted": accepted, "refused": refused},
        "seconds": round(time.process_time() - begun, 2),
    }


@contextlib.contextmanager
def _limited(folder: Path, target: Target, seeds: Mapping[str, Files]) -> Iterator[None]:
    """Read the first example, so that everything is imported, then allow no more than :data:`MEMORY` beyond that."""
    here = folder / "case" / f"{target.name}-first"
    write_case(here, next(iter(seeds.values())))
    with contextlib.suppress(Exception):  # case 0 reports it
        target.read(here)
    shutil.rmtree(here)
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if status.exists():
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_case(target: Target, folder: Path) -> tuple[bool, list[tuple[str, str, str]]]:
    """Read a case and check it against all rules.

    Where a target wants it, a file that is read is read a second time while new memory holds other bytes: a result that
    differs comes from uninitialised memory.

    Returns:
        Whether the reader took the files; and the faults: rule, what happened, and where.
    """
    from medmllm_plugins.errors import MedMLLMError

    faults: list[tuple[str, str, str]] = []
    values: list[str] = []
    begun = time.process_time()
    try:
        for perturb in (0xAA, 0x55) if target.twice else (0xAA,):
            _perturb(perturb)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values.append(repr(target.read(folder)))
    except MedMLLMError as error:
        text = str(error)
        if len(text) > target.longest:
            faults.append(("message", f"{len(text)} characters: {text[:300]}…", _place(error)))
        if memory := _out_of_memory(error):
            faults.append(("memory", f"{memory} behind: {text[:200]}", _place(error)))
    except MemoryError as error:
        faults.append(("memory", "MemoryError", _place(error)))
    except BaseException as error:
        faults.append(
            ("error", f"{type(error).__name__}: {str(error)[:300]}", f"{type(error).__name__} {_place(error)}")
        )
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            raise
    finally:
        _perturb(0)
    seconds = (time.process_time() - begun) / max(1, len(values))
    if seconds > target.seconds:
        faults.append(("seconds", f"{seconds:.1f} s", target.name))
    if len(set(values)) > 1:
        faults.append(("unstable", f"{values[0][:200]} and {values[1][:200]}", target.name))
    if (written := _output()) > OUTPUT:
        faults.append(("output", f"{written} bytes", target.name))
    return len(values) == 1 + target.twice, faults


def _perturb(byte: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library, which cannot fill memory
        ctypes.CDLL(None).mallopt(_PERTURB, byte)


def _output() -> int:
    """Bytes written to standard output and error since the last case; both files are emptied."""
    written = 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in {os.fstat(number).st_ino: number for number in (1, 2)}.values():
        with contextlib.suppress(OSError):
            written += os.fstat(number).st_size
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)  # else the next case would write behind a hole
    return written


def _out_of_memory(error: BaseException) -> str:
    """What an error was made from, if that was a lack of memory; ``from None`` hides it, but it is still there."""
    chain: BaseException | None = error.__cause__ or error.__context__
    while chain is not None:
        if isinstance(chain, MemoryError) or re.search(r"bad.?alloc|[Uu]nable to allocate|malloc", str(chain)):
            return f"{type(chain).__name__} ({str(chain)[:120]})"
        chain = chain.__cause__ or chain.__context__
    return ""


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "medmllm_plugins" in frame.filename or "/probes/" in frame.filename]
    last = (own or frames)[-1] if frames else None
    return "" if last is None else f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno} {last.name}"


def main() -> None:
    """Run as ``python -m fuzz.worker JOBS.json FIRST FOLDER``."""
    jobs, first, folder = sys.argv[1:]
    work([Job(**job) for job in json.loads(Path(jobs).read_text())], int(first), Path(folder))


if __name__ == "__main__":
    main()
