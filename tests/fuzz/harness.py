"""Starts workers, waits for them, and turns crashes and hangs into faults of the case that did it."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from fuzz.worker import Fault, Job, Progress, make_target, work, write_case

HANG: Final = 30.0
"""Seconds of the clock after which a case hangs; generous, since other work may hold the machine up."""
CRASHES: Final = 5
"""Crashes after which the other cases of a target are left out."""


@dataclass(slots=True)
class Outcome:
    """What came of jobs: the faults, and how many cases were read and refused, by target."""

    faults: list[Fault] = field(default_factory=list)
    cases: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def report(self, saved: Path | None = None) -> str:
        """Return the faults as text, with the command that repeats each."""
        lines = [f"{len(self.faults)} faults:"]
        for fault in self.faults:
            lines.append(f"  {fault.target}, case {fault.case}: {fault.rule}: {fault.what} [{fault.location}]")
            lines.append(f"    python -m fuzz {fault.target} --seed {fault.seed} --case {fault.case}")
        if saved is not None:
            lines.append(f"The files of each case are below {saved}.")
        return "\n".join(lines)


def run_jobs(
    jobs: Sequence[Job], folder: Path, *, fork: bool = False, check_malloc: bool = False, hang: float = HANG
) -> Outcome:
    """Work through jobs in child processes, a new one after each crash or hang.

    Args:
        jobs: what to do.
        folder: for files of the workers; a fault's files are kept in ``folder/faults/TARGET-SEED-CASE``.
        fork: whether workers are copies of this process, which has imported what they need, and not new ones.
        check_malloc: whether workers run with glibc's checks of the heap, where it has them.
        hang: seconds after which a case hangs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "jobs.json"
    outcome = Outcome()
    todo, first, crashes = list(jobs), 0, 0
    while first < len(todo):
        plan.write_text(json.dumps([asdict(job) for job in todo]))
        progress = Progress(folder / "progress")
        progress.at(first, 2**63)
        end = _run(todo, first, folder, fork, check_malloc, hang, progress)
        index, case = progress.read()
        if index >= len(todo):
            break
        job = todo[index]
        outcome.faults.append(Fault(job.target, job.seed, case, "hang" if end == "hang" else "crash", end, "process"))
        crashes = crashes + 1 if index == first else 1
        left = job.first + job.count - case - 1
        if case < 0 or left <= 0 or crashes >= CRASHES:
            first = index + 1
        else:
            todo[index] = Job(job.group, job.target, job.seed, case + 1, left)
            first = index
    _collect(folder / "results.jsonl", outcome)
    for fault in outcome.faults:
        group = next(job.group for job in jobs if job.target == fault.target)
        _save(group, fault, folder / "faults" / f"{fault.target}-{fault.seed}-{fault.case}")
    return outcome


def _collect(path: Path, outcome: Outcome) -> None:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = json.loads(line)
        if "fault" in record:
            outcome.faults.append(Fault(**record["fault"]))
        else:
            done = record["done"]
            for counts, key in ((outcome.cases, "cases"), (outcome.accepted, "accepted"), (outcome.refused, "refused")):
                counts[done["target"]] = counts.get(done["target"], 0) + done[key]
            outcome.seconds[done["target"]] = outcome.seconds.get(done["target"], 0.0) + record["seconds"]


def _save(group: str, fault: Fault, folder: Path) -> None:
    if fault.case >= 0:
        target = make_target(group, fault.target)
        write_case(folder, target.case(target.seeds(), fault.seed, fault.case))


def _run(
    jobs: Sequence[Job], first: int, folder: Path, fork: bool, check_malloc: bool, hang: float, progress: Progress
) -> str:
    """Run one worker to its end; returns how it ended: ``"exit 0"``, ``"SIGABRT: …"``, ``"hang"`` …."""
    log = folder / "output"
    if fork:
        process = _forked(list(jobs), first, folder, log)
        poll: Callable[[], int | None] = process.poll
        kill = process.kill
    else:
        with log.open("w") as output:
            started = subprocess.Popen(
                [
                    sys.executable,
                    "-X",
                    "faulthandler",
                    "-m",
                    "fuzz.worker",
                    str(folder / "jobs.json"),
                    str(first),
                    str(folder),
                ],
                stdout=output,
                stderr=output,
                env=_environment(check_malloc),
            )
        poll, kill = started.poll, started.kill
    at, since = progress.read(), time.monotonic()
    while (code := poll()) is None:
        time.sleep(0.02)
        if (now := progress.read()) != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > (hang if at[1] >= 0 else max(hang, HANG)):  # before the first case it imports
            kill()
            while poll() is None:
                time.sleep(0.02)
            return "hang"
    text = " ".join(log.read_text(errors="replace").split())[-400:]
    return f"{signal.Signals(-code).name}: {text}" if code < 0 else f"exit {code}: {text}"


class _Fork:
    """A copy of this process that works through jobs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def _forked(jobs: list[Job], first: int, folder: Path, log: Path) -> _Fork:
    if pid := os.fork():
        return _Fork(pid)
    code = 1
    try:
        number = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faulthandler.enable(number)
        work(jobs, first, folder)
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's, such as its tests, must go on in the copy


def _environment(check_malloc: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # Each thread would reserve 64 MiB of address space for its own heap.
    environment["MALLOC_ARENA_MAX"] = "2"
    environment["OMP_NUM_THREADS"] = "1"
    if check_malloc:
        environment |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    return environment
