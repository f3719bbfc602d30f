"""The made-up store is one that the package reads and fits, and each peak is that of a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.memory import Peaks, peaks, write
from benchmarks.record import Settings, Target
from medmllm_plugins.errors import DataError
from medmllm_plugins.features.store import FeatureStore
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_options import Options


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": 3, "WIDTH": 8, "PIXEL_WIDTH": 16}.items():
        monkeypatch.setattr(memory, name, value)


@pytest.mark.usefixtures("small")
def test_a_peak_never_falls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, 640)
    told = iter((100.0, 300.0, 299.9, 400.0))  # as the kernel may tell it: its counters are estimates
    monkeypatch.setattr(memory, "_peak", lambda: next(told))
    assert memory.read_and_fit(tmp_path)["by_stage"] == {"import": 100, "open": 300, "samples": 300, "fit": 400}


@pytest.mark.usefixtures("small")
def test_the_store_is_read_as_any_other(tmp_path: Path) -> None:
    write(tmp_path, 640)
    store = FeatureStore(tmp_path)
    store.check()
    assert len(store) == 640
    assert store.index["shard"].nunique() == 3
    assert [(layer.name, layer.poolings, layer.widths) for layer in store.header.layers] == [
        ("connector", ("mean", "last"), (8, 8)),
        ("llm.00", ("mean", "last"), (8, 8)),
        ("llm.norm", ("mean", "last"), (8, 8)),
        ("control.pixels", ("mean",), (16,)),
    ]
    samples = read_labelled_features(store)
    assert {fold: len(rows) for fold, rows in samples.rows.items()} == {"train": 512, "validation": 64, "test": 64}
    assert all(set(samples.of(fold)) == {0, 1, 2, 3} for fold in ("train", "validation", "test"))
    assert set(np.bincount(samples.group)) == {memory.GROUP}
    found = memory.read_and_fit(tmp_path)
    assert list(found["by_stage"]) == list(memory.STAGES)
    assert sorted(found["by_stage"].values()) == list(found["by_stage"].values())
    assert found["rows"]["train"] == 512


def test_a_peak_is_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ballast = np.ones(40_000_000)  # 320 MB, which the other process must not be charged with
    told = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"
    code = f"import json; print('noise'); print(json.dumps({{'by_stage': {{'fit': int({told}) / 1e3}}, 'rows': {{}}}}))"
    monkeypatch.setattr(memory, "_CHILD", code)
    found = peaks(tmp_path)
    assert 0 < found.whole < 100 < ballast.nbytes / 1e6


@pytest.mark.usefixtures("small")
def test_what_the_other_process_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 640)
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    exec(compile(memory._CHILD, "child", "exec"), {})
    found = Peaks(**json.loads(capsys.readouterr().out))
    assert 0 < found.by_stage["import"] <= found.whole
    assert found.rows == {"train": 512, "validation": 64, "test": 64}


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CHILD", "raise SystemExit('broken on purpose')")
    with pytest.raises(DataError, match=r"ended with status 1: .broken on purpose"):
        peaks(tmp_path)


def test_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(memory, "write", lambda folder, documents: written.append(documents))

    def made(folder: Path) -> Peaks:
        whole = 900.0 if int(folder.name) == memory.LARGE else 600.0
        return Peaks({"import": 300.0, "open": 310.0, "samples": 320.0, "fit": whole}, {"train": int(folder.name)})

    monkeypatch.setattr(memory, "peaks", made)
    record = memory.run(Settings("memory", "cpu", None, 2))
    assert sorted(written) == [memory.SMALL, memory.LARGE]
    assert (record.comparison.ratio, record.target) == (1.5, Target("at most", 1.10))
    told = record.to_dict()
    assert told["sides"]["large"] == {
        "what": "a store of 100,000 documents",
        "median_mb": 900.0,
        "min_mb": 900.0,
        "max_mb": 900.0,
        "runs_mb": [900.0, 900.0],
    }
    assert told["details"]["large_mb_after_open"] == 310
    assert "median 900 mb" in record.to_text()


def test_the_options_are_those_of_a_run_but_for_the_label_sets() -> None:
    assert memory.OPTIONS.strengths == Options().strengths
    assert (memory.OPTIONS.protocol, memory.OPTIONS.repeats) == ("linear", 0)
