"""The harness finds planted faults, names their case and keeps its files; cases are the same each time."""

from __future__ import annotations

import ctypes.util
import importlib
import json
from pathlib import Path
from random import Random

import pytest
from fuzz import harness, planted_targets
from fuzz.mutators import INTERESTING, mutate_bytes, mutate_lines, one_of, set_number
from fuzz.planted_targets import BAD
from fuzz.target import GROUPS
from fuzz.trees import json_mutator, json_text, mutate_tree, yaml_mutator
from fuzz.worker import Job

RULES = {
    "error": "error",
    "exit": "error",
    "memory_error": "memory",
    "hidden_memory": "memory",
    "message": "message",
    "seconds": "seconds",
    "output": "output",
    "unstable": "unstable",
    "abort": "crash",
    "leave": "crash",
}


def planted(name: str, count: int = 25) -> Job:
    return Job("fuzz.planted_targets", name, 0, 0, count)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[harness.Outcome, Path]:
    folder = tmp_path_factory.mktemp("planted")
    names = [name for name in planted_targets.TARGETS if name not in ("overflow", "hang")]
    return harness.run_jobs([planted(name) for name in names], folder), folder


def test_every_planted_fault_is_found_at_its_case(outcome: tuple[harness.Outcome, Path]) -> None:
    rules = {(fault.target, fault.case): fault.rule for fault in outcome[0].faults}
    assert rules == {(name, BAD): rule for name, rule in RULES.items()}


def test_the_work_goes_on_behind_a_crash(outcome: tuple[harness.Outcome, Path]) -> None:
    ended = {"abort", "leave"}
    for name in RULES.keys() | {"sound"}:
        # Before its crash a worker tells no counts.
        assert outcome[0].cases[name] == (25 - BAD - 1 if name in ended else 25)
        assert outcome[0].refused[name] > 0
    assert outcome[0].accepted["sound"] == 22


def test_the_files_of_a_fault_are_kept_and_its_command_is_told(outcome: tuple[harness.Outcome, Path]) -> None:
    content = (outcome[1] / "faults" / f"abort-0-{BAD}" / "a.bin").read_bytes()
    assert len(content) == 64 and sum(byte.bit_count() for byte in content) == 1
    assert f"python -m fuzz abort --seed 0 --case {BAD}" in outcome[0].report()
    assert "SIGABRT" in outcome[0].report() and "exit 3" in outcome[0].report()


@pytest.mark.skipif(
    ctypes.util.find_library("c_malloc_debug") is None, reason="the C library brings no libc_malloc_debug"
)
def test_a_write_behind_the_end_is_found_by_the_checks_of_the_heap(tmp_path: Path) -> None:
    (fault,) = harness.run_jobs([planted("overflow")], tmp_path, check_malloc=True).faults
    assert (fault.case, fault.rule) == (BAD, "crash") and "SIGABRT" in fault.what


def test_a_case_that_never_ends_is_ended(tmp_path: Path) -> None:
    outcome = harness.run_jobs([planted("hang")], tmp_path, fork=True, hang=1.0)
    assert [(fault.case, fault.rule) for fault in outcome.faults] == [(BAD, "hang")]
    assert outcome.cases["hang"] == 25 - BAD - 1


def test_a_copy_of_this_process_reports_as_a_new_one_does(tmp_path: Path) -> None:
    outcome = harness.run_jobs([planted("error"), planted("abort")], tmp_path, fork=True)
    assert [(fault.target, fault.rule, fault.case) for fault in outcome.faults] == [
        ("abort", "crash", BAD),
        ("error", "error", BAD),
    ]


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_lines, one_of(mutate_bytes, set_number)])
def test_damage_is_the_same_each_time_and_mostly_damage(mutate: object) -> None:
    assert callable(mutate)
    content = b"NRRD0004\nsizes: 8 6 5\ntype: short\n\n" + bytes(range(256))
    first, second = ([mutate(Random(number), content, [content]) for number in range(300)] for _ in range(2))
    assert first == second and len(set(first)) > 200
    assert sum(changed == content for changed in first) < 30
    assert {len(changed) for changed in first} > {len(content)}


def test_damaged_json_is_json_for_the_most_part() -> None:
    content = json.dumps({"a": [1, 2.5, "x"], "b": {"c": None}}).encode()
    good = 0
    for number in range(300):
        try:
            json.loads(json_mutator()(Random(number), content, ()))
            good += 1
        except (ValueError, RecursionError):
            continue
    assert 120 < good < 290


def test_trees_are_changed_and_the_first_one_is_not() -> None:
    tree = {"a": [1, 2.5, "x"], "b": {"c": None}}
    changed = [json_text(mutate_tree(Random(number), tree)) for number in range(300)]
    assert tree == {"a": [1, 2.5, "x"], "b": {"c": None}}
    assert len(set(changed)) > 150 and sum(text == json_text(tree) for text in changed) < 60


def test_numbers_at_which_types_turn_over_are_tried() -> None:
    changed = {set_number(Random(number), bytes(16), ()) for number in range(3000)}
    for value in INTERESTING:
        assert any(value.to_bytes(4, "little") in content for content in changed), value


def test_yaml_bombs_are_among_the_cases() -> None:
    mutate = yaml_mutator()
    texts = [mutate(Random(number), b"name: x\nclasses: {a: [], b: []}\n", ()) for number in range(400)]
    assert any(b"&a8 [*a7" in text for text in texts) and any(b"!!python" in text for text in texts)


def test_every_target_has_a_name_of_its_own() -> None:
    light = [group for group in GROUPS if group != "models"]  # those import torch
    names = [name for group in light for name in importlib.import_module(GROUPS[group]).TARGETS]
    assert len(names) == len(set(names)) > 25
