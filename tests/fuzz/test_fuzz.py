"""Damaged files of every kind that this package reads: it raises its own errors, quickly, and nothing else happens.

A few cases of each kind run with the other tests; thousands in the slow ones. ``MEDMLLM_FUZZ_SEED`` asks for other
cases than those that every run tries, ``MEDMLLM_FUZZ_CASES`` for another number in the slow tests, and
``MEDMLLM_FUZZ_SAVE`` names a folder for the files of cases that fail. A single case is repeated by
``PYTHONPATH=tests python -m fuzz TARGET --seed SEED --case CASE``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fuzz.harness import Outcome, run_jobs
from fuzz.target import GROUPS, Target
from fuzz.worker import Job

SEED = int(os.environ.get("MEDMLLM_FUZZ_SEED", "0"))
MANY = int(os.environ.get("MEDMLLM_FUZZ_CASES", "3000"))
FEW = 50
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
    outcome = run_jobs(jobs([group], MANY), folder, fork=group == "models", check_malloc=group in NATIVE)
    judge(outcome, [group], folder)
    assert set(outcome.cases.values()) == {MANY}
