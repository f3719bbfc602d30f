"""The harness: statistics worked out by hand, the order of the sides, the record, and the command line."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gpu_suite, harness
from benchmarks.harness import Benchmark, Comparison, Kind, Record, ResultsDifferError, Run, Sides, compare, expect
from medmllm_plugins.errors import OptionError

DOCS = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def setup(run: Run, images: float) -> Sides:
    def side(result: float) -> Callable[[], float]:
        return lambda: calls.append(result) or result  # type: ignore[func-returns-value]

    def check(ours: float, baseline: float) -> dict[str, float]:
        expect(ours <= baseline, "at most as much", f"{ours}", "tests/benchmarks")
        return {"checked": ours}

    calls.clear()
    part = Sides(side(5.0), side(20.0), check, measure=float)
    return Sides(
        side(3.0), side(images), check, measure=float, baseline_scale=2.0, items=12, parts={"half": part},
        details=lambda comparison: {"added_s": comparison.ours[0] - 2.5},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: None)


calls: list[float] = []
TOY = Benchmark(
    "toy", "ours in words", "baseline in words", setup,
    {"tiny": {"images": 6.0}, "3b": {"images": 9.0}, "quick": {"images": 3.0}}, {("tiny", "cpu"): 4.0},
    limits={"added_s": 1.0}, repeats=2, devices=("cpu", "cuda"),
)  # fmt: skip


def record(kind: Kind = "speedup", target: float | None = 2.0) -> Record:
    targets = {} if target is None else {("tiny", "cpu"): target}
    benchmark = Benchmark(
        "toy", "ours in words", "baseline in words", setup, {"tiny": {"images": 1}}, targets, kind=kind
    )
    comparison = Comparison(ours=(2.0, 3.0, 4.0), baseline=(6.0, 5.0, 7.0), kind=kind)
    return Record(benchmark, Run("tiny", "cpu", 3, Path()), comparison, {"images": 3, "share": 1.23456})


def test_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    comparison = Comparison(ours=(2.0, 4.0, 3.0), baseline=(6.0, 2.0, 9.0))
    assert (comparison.ratio, comparison.ratio_range) == (2.0, (0.5, 3.0))
    overhead = Comparison(ours=(2.0, 4.0), baseline=(1.0, 8.0), kind="overhead")
    assert (overhead.ratio, overhead.ratio_range) == (3.0 / 4.5, (0.5, 2.0))


@pytest.mark.parametrize(("repeats", "order"), [(1, "ba"), (3, "baabba")])
def test_sides_alternate_and_alternate_in_which_goes_first(repeats: int, order: str) -> None:
    names: list[str] = []

    def side(name: str) -> Callable[[], float]:
        return lambda: names.append(name) or float(len(names))  # type: ignore[func-returns-value]

    sides = Sides(side("a"), side("b"), lambda ours, baseline: None, measure=float, baseline_scale=10.0)
    comparison = compare(sides, "speedup", repeats=repeats, device="cpu")
    assert "".join(names) == order
    # A side's values are its own, in the order of rounds.
    assert comparison.ours == tuple(i + 1.0 for i, name in enumerate(order) if name == "a")
    assert comparison.baseline == tuple(10 * (i + 1.0) for i, name in enumerate(order) if name == "b")


@pytest.mark.parametrize(("device", "wait"), [("cpu", []), ("cuda:1", ["synchronise cuda:1"])])
def test_clock_times_the_work_alone_and_waits_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, wait: list[str]
) -> None:
    events: list[str] = []
    ticks = iter(range(100))
    monkeypatch.setattr(harness, "perf_counter", lambda: events.append("clock") or float(next(ticks)))
    monkeypatch.setattr(gc, "collect", lambda: events.append("collect"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"synchronise {device}"))
    assert harness.timed(lambda: events.append("work"), device) == (1.0, None)
    assert events == ["collect", *wait, "clock", "work", *wait, "clock"]


def test_a_run_warms_up_checks_and_collects_details() -> None:
    result = harness.run(TOY)
    # Both sides once, then two rounds; the same for the part.
    assert calls == [6.0, 3.0, 6.0, 3.0, 3.0, 6.0, 20.0, 5.0, 20.0, 5.0, 5.0, 20.0]
    assert result.comparison.ours == (3.0, 3.0) and result.comparison.baseline == (12.0, 12.0)
    assert result.details == {
        "images": 6.0, "checked": 3.0, "baseline_per_s": 1.0, "ours_per_s": 4.0, "half_ratio": 4.0, "half_checked": 5.0,
        "added_s": 0.5,
    }  # fmt: skip
    assert result.met is True and not result.run.folder.exists()
    assert harness.run(TOY, size="3b").met is None
    quick = harness.run(TOY, size="quick")
    assert (quick.run.repeats, quick.met) == (1, None)


def test_a_limit_that_is_passed_misses_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "perf_counter", iter(range(100)).__next__)
    result = harness.run(TOY)
    assert Record(TOY, result.run, result.comparison, {**result.details, "added_s": 1.5}).met is False


def test_sides_that_differ_stop_the_benchmark() -> None:
    different = Benchmark("toy", "", "", setup, {"tiny": {"images": 1.0}}, {})
    with pytest.raises(ResultsDifferError, match=r"^Expected at most as much from both sides, got 3.0. Run `pytest"):
        harness.run(different)
    assert calls == [1.0, 3.0]  # nothing was timed


@pytest.mark.parametrize(
    ("kind", "target", "met", "verdict"),
    [
        ("speedup", None, None, "no target"),
        ("speedup", 2.0, True, "target at least 2: met"),
        ("speedup", 2.01, False, "target at least 2.01: MISSED"),
        ("overhead", 0.5, True, "target at most 0.5: met"),
        ("overhead", 0.49, False, "target at most 0.49: MISSED"),
    ],
)
def test_verdict(kind: Kind, target: float | None, met: bool | None, verdict: str) -> None:
    result = record(kind, target)
    assert result.met is met
    assert result.to_text().splitlines()[0].endswith(verdict)


def test_record_as_json_has_the_documented_keys() -> None:
    values: dict[str, Any] = json.loads(json.dumps(record().to_dict()))
    assert (values["ratio"], values["range"], values["target"], values["met"]) == (2.0, [5.0 / 3.0, 3.0], 2.0, True)
    assert values["baseline"] == {
        "what": "baseline in words", "median_s": 6.0, "min_s": 5.0, "max_s": 7.0, "runs_s": [6.0, 5.0, 7.0],
    }  # fmt: skip
    assert (values["name"], values["repeats"], values["device"], values["size"]) == ("toy", 3, "cpu", "tiny")
    assert values["versions"]["torch"] is not None and values["machine"]["peak_mb"] != 0
    documented = set(re.findall(r"`([a-z_]+)`", DOCS))
    assert {*values, *values["ours"], *values["machine"]} <= documented


def test_record_as_text() -> None:
    *lines, facts = record().to_text().splitlines()
    assert lines == [
        "toy (tiny, cpu, 3 rounds): speedup 2.00 [1.67 to 3.00], target at least 2: met",
        "    baseline  median 6 s [5 to 7]  baseline in words",
        "    ours      median 3 s [2 to 4]  ours in words",
    ]
    assert re.match(r"    images 3, share 1\.235, architecture \w+, cpus \d+, load [\d.]+, threads \d+", facts)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda name: TOY)


@pytest.mark.usefixtures("toy")
def test_command_prints_one_json_object_for_each_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["toy", "toy", "--quick", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(values["name"], values["size"], values["repeats"]) for values in records] == [("toy", "quick", 1)] * 2
    assert command.main(["toy", "--size", "3b", "--repeats", "3"]) == 0
    assert "toy (3b, cpu, 3 rounds): speedup 6.00" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "mps"], "toy: expected --device to be cpu or cuda, got 'mps'. Use `--device cpu`."),
        (["--size", "7b"], "toy: expected --size to be tiny or 3b or quick, got '7b'. Use `--size tiny`."),
        (["--repeats", "0"], "toy: expected --repeats to be at least 1, got 0. Use `--repeats 1`."),
        (["--device", "cuda"], "finds no CUDA device here"),
    ],
)
def test_command_refuses_what_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["toy", *options]) == 2
    output = capsys.readouterr()
    assert message in output.err and not output.out


def test_names_are_those_of_the_docs() -> None:
    with pytest.raises(OptionError, match=r"^Expected the name of a benchmark \(attribution, bootstrap, .*got 'speed'"):
        command.load("speed")
    section = DOCS[DOCS.index("## List of benchmarks") : DOCS.index("## The record")]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(command.names())
    assert set(re.findall(r"^\*\*`(\w+)`\*\*:", section, re.MULTILINE)) == set(command.names())
    assert set(re.findall(r"^    python -m benchmarks (\w+)", DOCS, re.MULTILINE)) <= {*command.names(), gpu_suite.NAME}


def test_list_describes_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    output = capsys.readouterr().out
    for name in command.names():
        benchmark = command.load(name)
        assert benchmark.name == name and "quick" in benchmark.sizes
        assert command.describe(benchmark) in output
        assert all(size in benchmark.sizes and device in benchmark.devices for size, device in benchmark.targets)
