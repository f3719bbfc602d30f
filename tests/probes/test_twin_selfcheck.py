"""Twin patching on faults that are known: the healthy model as the twin of the broken one.

The figures of docs/patching.md are of

    MEDMLLM_SELFCHECK_SEEDS=2 pytest -m exhaustive -s tests/probes/test_twin_selfcheck.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from support.phantom_images import phantom_dataset
from support.trained_families import KINDS, trained_family

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.validation import twin_selfcheck as module
from medmllm_plugins.probes.validation.fault_kinds import KINDS as FAULTS
from medmllm_plugins.probes.validation.fault_kinds import Fault
from medmllm_plugins.probes.validation.twin_selfcheck import (
    TwinReport,
    TwinTrial,
    judge,
    planned_faults,
    twin_selfcheck,
)
from medmllm_plugins.results.patch_records import TwinPatching

torch.set_num_threads(1)
SEEDS = range(int(os.environ.get("MEDMLLM_SELFCHECK_SEEDS", "1")))
EXACT = Estimate(0.5, 0.4, 0.6)


def patching(*stages: str, difference: float = 0.4, better: str = "healthy") -> TwinPatching:
    worse = "broken" if better == "healthy" else "healthy"
    low_high = Estimate(difference, difference - 0.1, difference + 0.1)
    return TwinPatching(
        worse=worse,
        better=better,
        n=80,
        groups=60,
        worse_accuracy=EXACT,
        better_accuracy=EXACT,
        difference=low_high,
        stages=stages,
    )


@pytest.mark.parametrize(
    ("names", "stages", "judgement"),
    [
        (["tower_lost"], ["vision"], "correct"),
        (["tower_lost"], [], "undecided"),
        (["tower_lost"], ["vision", "connector"], "wrong"),
        (["tower_lost"], ["mapping"], "wrong"),
        (["tower_lost", "labels_permuted"], ["vision", "mapping"], "correct"),
        (["tower_lost", "labels_permuted"], ["vision"], "part"),
        (["tower_lost", "labels_permuted"], ["vision", "connector"], "wrong"),
    ],
)
def test_judgements(names: list[str], stages: list[str], judgement: str) -> None:
    assert judge([Fault(name) for name in names], patching(*stages)) == judgement


def trial(judgement: str, difference: float, better: str = "healthy") -> TwinTrial:
    result = patching("vision", difference=difference, better=better)
    return TwinTrial((Fault("tower_lost", 3),), result, judgement)  # type: ignore[arg-type]


def test_only_costly_faults_count() -> None:
    report = TwinReport((trial("correct", 0.5), trial("wrong", 0.1), trial("wrong", 0.5, "broken")))
    assert report.passed and report.counts == {"correct": 1}
    assert "100.0% of 1 faults" in report.render() and report.to_dict()["trials"] == 3
    assert not TwinReport((*[trial("correct", 0.5)] * 32, trial("undecided", 0.5))).passed
    assert TwinReport((*[trial("correct", 0.5)] * 33, trial("undecided", 0.5))).passed
    assert trial("wrong", 0.5).summary() == "seed 0: tower_lost (3): vision; cost +50.0  <- WRONG"


def test_every_kind_of_every_stage_and_pairs_are_planned() -> None:
    planned = planned_faults(4, 2)
    singles = {faults[0].name for faults in planned if len(faults) == 1}
    assert {FAULTS[name].modes[0] for name in singles} == {"vision", "connector", "comprehension", "mapping"}
    assert len(singles) > 35 and sum(len(faults) == 2 for faults in planned) >= 7
    assert all(fault.strength == 2 and fault.seed == 4 for faults in planned for fault in faults)


@pytest.mark.slow
def test_a_round_writes_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOCUMENTS", 32)
    model, said, output = load(LoadOptions("demo", device="cpu", dtype="float32")), [], tmp_path / "trials.jsonl"
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    kinds = ["connector_signs", "labels_permuted"]
    report = twin_selfcheck(model, phantom_dataset(), seeds=[100], kinds=kinds, say=said.append, output=output)
    assert report.passed and report.counts == {"correct": 2} and len(said) == 2
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["result"]["stages"] for line in lines] == [["connector"], ["mapping"]]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.named_parameters())


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["demo", *KINDS])
def test_patching_names_the_broken_stages(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if kind == "demo":
        report = twin_selfcheck(
            load(LoadOptions("demo", device="cpu", dtype="float32")), phantom_dataset(), seeds=SEEDS, say=print
        )
    else:
        folder = trained_family(kind, tmp_path_factory.getbasetemp())
        chat = ChatModel(open_native(LoadOptions(str(folder), device="cpu")))
        report = twin_selfcheck(chat, phantom_dataset(), seeds=SEEDS, say=print)
    print(f"{kind}\n{report.render()}")
    assert report.passed
