"""The command line: one JSON object on a line with the documented keys, a readable text, and clear errors."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import catalogue
from benchmarks.cli import main
from benchmarks.measure import Comparison, Times
from benchmarks.record import Record, Settings, Target

KEYS = [
    "name",
    "ratio",
    "ratio_spread",
    "target",
    "met",
    "sides",
    "repeats",
    "device",
    "size",
    "details",
    "machine",
    "versions",
]
SIDE_KEYS = ["what", "median_s", "min_s", "max_s", "runs_s"]
AT_LEAST_2 = Target("at least", 2.0)


def made_up(settings: Settings, target: Target | None = AT_LEAST_2) -> Record:
    return Record(
        settings=settings,
        sides=(("plain", "the plain side"), ("fast", "the fast side")),
        comparison=Comparison(Times((6.0, 5.0, 7.0)), Times((2.0, 3.0, 4.0))),
        target=target,
        details={"images": 3, "images_per_s": 1.23456},
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Keep benchmarks from running; lists what they would have been asked."""
    found: list[Settings] = []

    def run(settings: Settings) -> Record:
        found.append(settings)
        return made_up(settings)

    monkeypatch.setattr(catalogue, "run", run)
    return found


def test_json_is_one_line_with_the_documented_keys(asked: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generation", "--json", "--repeats", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    record: dict[str, Any] = json.loads(out)
    assert list(record) == KEYS
    assert list(record["sides"]) == ["plain", "fast"]
    assert all(list(side) == SIDE_KEYS for side in record["sides"].values())
    assert record["ratio"] == 2.0
    assert record["ratio_spread"] == [5.0 / 3.0, 3.0]
    assert record["target"] == {"sense": "at least", "ratio": 2.0}
    assert record["met"] is True
    assert record["sides"]["plain"] == {
        "what": "the plain side",
        "median_s": 6.0,
        "min_s": 5.0,
        "max_s": 7.0,
        "runs_s": [6.0, 5.0, 7.0],
    }
    assert (record["name"], record["repeats"]) == ("generation", 3)
    assert (record["device"], record["size"]) == ("cpu", "tiny")
    assert record["details"] == {"images": 3, "images_per_s": 1.23456}
    assert set(record["machine"]) == {"architecture", "cpus", "load"}
    assert record["versions"]["torch"] is not None


def test_the_page_documents_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+)`", page))
    assert {*KEYS, *SIDE_KEYS, "architecture", "cpus", "load"} <= documented


def test_text_shows_ratio_verdict_and_both_sides(asked: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generation"]) == 0
    *lines, facts = capsys.readouterr().out.splitlines()
    assert lines == [
        "generation (tiny, cpu, 7 rounds): plain / fast = 2.00 [1.67 to 3.00], target at least 2: met",
        "    plain  median 6 s [5 to 7]  the plain side",
        "    fast   median 3 s [2 to 4]  the fast side",
    ]
    assert re.fullmatch(r"    images 3, images_per_s 1\.235, architecture \w+, cpus \d+, load [\d.]+", facts)


@pytest.mark.parametrize(
    ("target", "met", "said"),
    [
        (None, None, "no target"),
        (Target("at least", 2.0), True, "target at least 2: met"),
        (Target("at least", 2.01), False, "target at least 2.01: MISSED"),
        (Target("at most", 2.0), True, "target at most 2: met"),
        (Target("at most", 1.99), False, "target at most 1.99: MISSED"),
    ],
)
def test_the_verdict(target: Target | None, met: bool | None, said: str) -> None:
    record = made_up(Settings("startup", "cpu", None, 3), target)
    assert record.to_dict()["met"] is met
    assert record.to_text().splitlines()[0].endswith(said)
    assert record.to_text().startswith("startup (cpu, 3 rounds)")


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["startup"], Settings("startup", "cpu", None, 15)),
        (["startup", "--repeats", "2"], Settings("startup", "cpu", None, 2)),
        (["generation"], Settings("generation", "cpu", "tiny", 7)),
        (["generation", "--size", "3b", "--device", "cuda"], Settings("generation", "cuda", "3b", 7)),
    ],
)
def test_defaults(asked: list[Settings], words: list[str], settings: Settings) -> None:
    assert main(words) == 0
    assert asked == [settings]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["speed"],
            ", bootstrap, duplicates, probe_fit, paper_protocol, capture, diagnosis, memory, attribution, report)",
        ),
        (["startup", "--device", "cuda"], "expected `--device` to be cpu, but got 'cuda': use `--device cpu`."),
        (["generation", "--device", "mps"], "expected `--device` to be cpu or cuda, but got 'mps'"),
        (["startup", "--size", "tiny"], "expected no `--size`, since there is no model, but got 'tiny': leave it out."),
        (["generation", "--size", "7b"], "expected `--size` to be tiny or 3b, but got '7b': use `--size tiny`."),
        (["generation", "--repeats", "0"], "expected `--repeats` to be at least 1, but got 0: use `--repeats 1`."),
    ],
)
def test_what_makes_no_sense_is_refused(
    asked: list[Settings], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert (captured.out, asked) == ("", [])


def test_a_missing_gpu_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for size in ("tiny", "3b"):
        assert main(["generation", "--device", "cuda", "--size", size]) == 2
        assert "finds no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_names_are_listed(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    try:
        assert main(words) == 0
    except SystemExit as end:
        assert end.code == 0
    out = capsys.readouterr().out
    for name, benchmark in catalogue.BENCHMARKS.items():
        assert name in out
        assert benchmark.summary in out


@pytest.mark.parametrize("name", list(catalogue.BENCHMARKS))
def test_the_table_names_modules_that_run(name: str) -> None:
    assert callable(importlib.import_module(catalogue.BENCHMARKS[name].module).run)
