"""The suite for a GPU: the limit of the device, and a rehearsal on the CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu_suite, harness
from benchmarks.__main__ import main
from benchmarks.harness import Benchmark, Run, Sides
from benchmarks.limits import Pass, Rates, Work, count_work, measure_rates
from medmllm_plugins.errors import DataError


class TwoLayers(nn.Module):
    """8 words of width 6, a layer to width 10, and one to width 4."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 6)
        self.first = nn.Linear(6, 10, bias=False)
        self.second = nn.Linear(10, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(self.embed(ids)))
        return result


def test_operations_and_bytes_are_counted_for_each_pass() -> None:
    model, ids = TwoLayers(), torch.arange(6)

    def run() -> None:
        with torch.no_grad():
            model(ids)
            model(ids[:1])
            model.second(torch.ones(2, 10))  # outside of a pass
            torch.ones(3, 5) @ torch.ones(5, 7)

    needed = count_work(run, model)
    weights = 4 * (60 + 40 + 4)  # of the embedding, some rows are read
    assert [(part.flops, part.bytes) for part in needed.passes] == [
        (2 * 6 * (60 + 40), weights),
        (2 * (60 + 40), weights),
    ]
    assert needed.rest == Pass(flops=2 * 2 * 40 + 2 * 3 * 5 * 7, bytes=4 * 44)
    assert needed.flops == 2 * 7 * 100 + 2 * 2 * 40 + 210


def test_a_pass_takes_as_long_as_the_slower_of_arithmetic_and_reading() -> None:
    rates = Rates(flops=100.0, bytes=10.0)
    needed = Work([Pass(flops=500, bytes=10), Pass(flops=5, bytes=30)], Pass(flops=200))
    assert needed.seconds(rates) == 5 + 3 + 2


def test_rates_are_those_of_the_machine() -> None:
    rates = measure_rates("cpu", torch.float32)
    assert 1e8 < rates.flops < 1e15 and 1e8 < rates.bytes < 1e14


@pytest.mark.slow
def test_the_suite_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["gpu", "--device", "cpu", "--size", "tiny", "--json"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    failed = {record["name"]: record["error"] for record in records if "error" in record}
    # The host's own wrapper needs a package that is built for few systems.
    assert set(failed) <= {"host_wrapper"} and all("decord" in error for error in failed.values()), failed
    assert status == (2 if failed else 0)
    assert [record["name"] for record in records] == [entry.name for entry in gpu_suite.entries("tiny")]
    for record in records:
        if record["name"] in failed:
            continue
        details = record["details"]
        assert details["limit_s"] > 0 and details["times_limit"] > 0 and details["tflop"] > 0, record["name"]
        assert record["machine"]["peak_mb"] != 0 and record["target"] is None
    by_name = {record["name"]: record["details"] for record in records}
    assert by_name["generation"]["forward_passes"] >= 2 and by_name["probe_fit"]["forward_passes"] == 0


def test_every_entry_is_a_size_of_its_benchmark() -> None:
    for entry in gpu_suite.entries("full"):
        benchmark = harness.load(entry.name)
        assert entry.size in benchmark.sizes and "cuda" in benchmark.devices, entry


def failing(run: Run) -> Sides:
    raise DataError("nothing to measure")


def quick(run: Run) -> Sides:
    return Sides(ours=lambda: 1, baseline=lambda: 1, check=lambda ours, baseline: None, flops=1e6)


def test_a_benchmark_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, Any] = {"bad": failing, "good": quick}
    entries = tuple(gpu_suite.Entry(name, "quick", 1, times_limit=1e12) for name in made)
    monkeypatch.setattr(gpu_suite, "FULL", entries)
    monkeypatch.setattr(
        gpu_suite,
        "load",
        lambda name: Benchmark(name, "ours", "baseline", made[name], sizes={"quick": {}}, targets={}),
    )
    assert gpu_suite.run_suite(device="cpu", size="full") == 2
    printed = capsys.readouterr()
    assert "bad (quick): " in printed.err and "nothing to measure" in printed.err
    assert "good (quick, cpu, 1 rounds)" in printed.out and "target at most 1e+12: met" in printed.out


def test_nothing_begins_after_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.run_suite(device="cpu", size="tiny", minutes=0, as_json=True) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(gpu_suite.entries("tiny")) and all("left out" in line["error"] for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpu", "generation"],
        ["gpu", "--quick"],
        ["gpu", "--repeats", "2"],
        ["gpu", "--size", "huge"],
        ["generation", "--minutes", "2"],
    ],
)
def test_options_that_do_not_belong_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "gpu" in capsys.readouterr().err
