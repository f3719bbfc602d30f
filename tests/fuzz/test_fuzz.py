"""Damaged files of every kind that this package reads: it raises its own errors, quickly, and nothing else happens.

A few cases of each kind run with the other tests; thousands in the slow ones. ``MEDMLLM_FUZZ_SEED`` asks for other
cases than those that every run tries, ``MEDMLLM_FUZZ_CASES`` for another number in the slow tests, and
``MEDMLLM_FUZZ_SAVE`` names a folder for the files of cases that fail. A single case is repeated by
``PYTHONPATH=tests python -m fuzz TARGET --seed SEED --case CASE``.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fuzz.harness import Outcome, run_jobs
from fuzz.target import GROUPS, Target
from fuzz.worker import Job

SEED = int(os.environ.get("MEDMLLM_FUZZ_SEED", "0"))
MANY = int(os.environ.get("MEDMLLM_FUZZ_CASES", "3000"))
FEW = 20
LIGHT = tuple(group for group in GROUPS if group != "models")
NATIVE = ("images", "volumes")
"""Groups whose decoders are native code, which run with the C library's checks of the heap."""


def targets(group: str) -> Mapping[str, Target]:
    return importlib.import_module(GROUPS[group]).TARGETS  # type: ignore[no-any-return]


def judge(outcome: Outcome, groups: Sequence[str], folder: Path) -> None:
    assert not outcome.faults, outcome.report(folder / "faults")
    for group in groups:
        for name, target in targets(group).items():
            # Damage that no file survives, or that no reader minds, would test nothing.
            assert outcome.accepted[name] > 0, f"no case of {name} was read"
            assert outcome.refused[name] > 0 or not target.refuses, f"no case of {name} was refused"


def jobs(groups: Sequence[str], count: int) -> list[Job]:
    return [Job(group, name, SEED, 0, count) for group in groups for name in targets(group)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = os.environ.get("MEDMLLM_FUZZ_SAVE")
    return Path(saved) / tmp_path.name if saved else tmp_path


def test_a_few_damaged_files_of_every_kind(folder: Path) -> None:
    judge(run_jobs(jobs(LIGHT, FEW), folder), LIGHT, folder)


def test_a_few_damaged_checkpoints(folder: Path) -> None:
    # A copy of this process, which has imported torch by now: a new one would take seconds for that.
    judge(run_jobs(jobs(["models"], FEW), folder, fork=True), ["models"], folder)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_thousands_of_damaged_files(group: str, folder: Path) -> None:
    outcome = run_jobs(jobs([group], MANY), folder, fork=group == "models")
    judge(outcome, [group], folder)
    assert set(outcome.cases.values()) == {MANY}


@pytest.mark.slow
@pytest.mark.parametrize("group", NATIVE)
def test_no_decoder_writes_where_it_must_not(group: str, folder: Path) -> None:
    # With its checks of the heap the C library does not fill memory, so that both are not had in one run.
    judge(run_jobs(jobs([group], MANY // 10), folder, check_malloc=True), [group], folder)


def test_a_long_line_in_a_header_is_an_error_and_no_crash(tmp_path: Path) -> None:
    # NRRD's reader in SimpleITK 2.5.7 writes behind the end of a buffer on its stack from some 1,000 characters on.
    nrrd = (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 6 5\n"
        b"space directions: (0.7,0,0) (0,0.7,0) (0,0,2.5)\nendian: little\nencoding: raw\n"
    )
    metaimage = b"ObjectType = Image\nNDims = 3\nDimSize = 8 6 5\n"
    heads = {"a.nrrd": nrrd, "a.nhdr": nrrd, "a.mha": metaimage, "a.mhd": metaimage}
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head + b"A" * 5000 + b"\n\n" + bytes(480))
    code = (
        "import sys, pathlib\nfrom medmllm_plugins.data.readers.volumes import read_volume\n"
        "from medmllm_plugins.errors import DataError\n"
        "for path in sys.argv[1:]:\n    try:\n        read_volume(pathlib.Path(path))\n"
        "    except DataError as error:\n        print(len(str(error)), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    paths = [str(tmp_path / name) for name in heads]
    ended = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"
    lengths = [int(line) for line in ended.stdout.split()]
    assert len(lengths) == len(heads) and all(0 < length < 1500 for length in lengths)
