"""The diagnosis tried on planted faults: what is planted, what is counted, and that the demo passes."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from support.phantom_images import phantom_dataset

from medmllm_plugins.cli import selfcheck as command
from medmllm_plugins.cli.app import main
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.diagnosis import Mode
from medmllm_plugins.probes.validation import selfcheck
from medmllm_plugins.probes.validation.planted_faults import HEALTHY, KINDS, STRENGTHS, Fault
from medmllm_plugins.probes.validation.selfcheck import FaultBench, Report, Trial, faults_for_seed
from medmllm_plugins.results.probe_records import HANDOVER, MODES, Diagnosis, Effect

FEW = {"train": 200, "validation": 80, "test": 120}
ENDS: dict[Mode, str] = {
    "vision": "tower_lost",
    "connector": "connector_lost",
    "comprehension": "blind",
    "mapping": "labels_permuted",
}


def diagnosis_of(named: Mode | None) -> Diagnosis:
    nothing = Estimate(0.0, 0.0, 0.0)
    effects = tuple(Effect(mode=mode, loss=nothing, verdict="ruled out") for mode in MODES)
    return Diagnosis(effects=effects, named=named)


def trials(mode: Mode, strength: int, *named: Mode | None) -> list[Trial]:
    return [
        Trial(Fault(ENDS[mode], mode, strength), diagnosis_of(mode_named), diagnosis_of(None)) for mode_named in named
    ]  # type: ignore[arg-type]


def test_a_seed_plants_every_mode_at_every_strength_once() -> None:
    for seed in range(3):
        faults = faults_for_seed(seed)
        assert faults[0] == replace(HEALTHY, seed=seed) and {fault.seed for fault in faults} == {seed}
        assert Counter((fault.mode, fault.strength) for fault in faults[1:]) == Counter(
            (mode, strength) for mode in MODES for strength in STRENGTHS
        )


def test_twelve_seeds_plant_every_kind_at_every_strength() -> None:
    planted = {(fault.name, fault.strength) for seed in range(12) for fault in faults_for_seed(seed)[1:]}
    assert planted == {(name, strength) for mode in MODES for name in KINDS[mode] for strength in STRENGTHS}


def test_what_counts_as_correct_and_as_misattributed() -> None:
    for named, right, misattributed in (("vision", True, False), (None, False, False), ("mapping", False, True)):
        (trial,) = trials("vision", 2, named)  # type: ignore[arg-type]
        assert (trial.correct, trial.misattributed) == (right, misattributed)
    for named, right in ((None, True), ("vision", False)):
        trial = Trial(HEALTHY, diagnosis_of(named), diagnosis_of(None))  # type: ignore[arg-type]
        assert trial.correct is right and trial.misattributed is not right


def test_the_figures_are_those_counted_by_hand() -> None:
    healthy = [Trial(HEALTHY, diagnosis_of(None), diagnosis_of(None))] * 19 + [
        Trial(HEALTHY, diagnosis_of("mapping"), diagnosis_of(None))
    ]
    firm = trials("vision", 2, *["vision"] * 10) + trials("mapping", 3, *["mapping"] * 9, None)
    mild = trials("connector", 1, *["connector"] * 4, *[None] * 5, "vision")
    report = Report((*healthy, *firm, *mild))
    assert (report.sensitivity, report.false_alarms, report.misattributed) == (0.95, 0.05, 0.1)
    assert report.passed
    record = json.loads(json.dumps(report.to_dict()))
    assert record["passed"] and record["trials"] == 50 and len(record["each"]) == 50
    named = {"connector": 4, "none": 5, "vision": 1}
    assert {"fault": "connector_lost", "mode": "connector", "strength": 1, "named": named} in record["by_fault"]
    lines = report.render().splitlines()
    assert "connector  connector_lost   1         none 5, connector 4, vision 1" in lines
    assert (
        lines[-1] == "passed" and "faults of strengths 2 and 3 named correctly: 95.0% (required: at least 95%)" in lines
    )


@pytest.mark.parametrize(
    "more",
    [
        trials("vision", 2, None),
        [Trial(HEALTHY, diagnosis_of("vision"), diagnosis_of(None))],
        trials("mapping", 1, "vision"),
        [Trial(Fault("tower_lost", "vision", 1), diagnosis_of(None), diagnosis_of("mapping"))],
    ],
    ids=["not named", "false alarm", "charged to another", "charged to another without a reference"],
)
def test_each_promise_can_be_broken_alone(more: list[Trial]) -> None:
    good = [
        Trial(HEALTHY, diagnosis_of(None), diagnosis_of(None)),
        *trials("vision", 2, "vision"),
        *trials("vision", 1, "vision"),
    ]
    assert Report(tuple(good)).passed and not Report((*good, *more)).passed


def test_what_was_not_tried_has_no_figure() -> None:
    report = Report(tuple(trials("vision", 2, "vision")))
    assert report.sensitivity == 1 and math.isnan(report.false_alarms) and math.isnan(report.misattributed)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def some() -> Dataset:
    """Select enough of the demo's phantoms for a small trial and its reference, whole patients only."""
    phantoms = phantom_dataset()
    taken: list[Document] = []
    for fold in FOLDS:
        want, start = FEW[fold] * (2 if fold == "train" else 1), len(taken)
        for document in phantoms.select([fold]):
            if len(taken) - start >= want and document.group != taken[-1].group:
                break
            taken.append(document)
    return replace(phantoms, documents=tuple(taken))


@pytest.fixture(scope="module")
def bench(demo: LoadedModel, some: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "SIZES", FEW)
        yield FaultBench(demo, some, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def trial_of(bench: FaultBench) -> Callable[[Fault], Trial]:
    """Run a trial once, since each takes seconds."""
    return functools.cache(bench.trial)


SLOW = ("connector", "comprehension")
"""A trial takes seconds. That these stages are named is also proven on stores whose truth is known (test_diagnosis.py),
and that their faults break them and none before them in test_planted_faults.py."""


@pytest.mark.parametrize(
    "mode", [None, *(pytest.param(mode, marks=pytest.mark.slow if mode in SLOW else []) for mode in MODES)]
)
def test_each_stage_is_named_when_it_is_broken_and_none_when_none_is(
    trial_of: Callable[[Fault], Trial], demo: LoadedModel, mode: Mode | None
) -> None:
    before = {name: value.clone() for name, value in demo.model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in demo.model.modules()]
    trial = trial_of(HEALTHY if mode is None else Fault(ENDS[mode], mode, 3))
    expected = HANDOVER if mode == "mapping" else mode
    assert trial.diagnosis.named == expected, trial.to_dict()
    named = trial.without_reference.named
    assert named in (None, expected)
    assert mode in (None, "vision") or named == expected  # an image lost in the tower leaves nothing to compare
    assert all(torch.equal(value, before[name]) for name, value in demo.model.state_dict().items())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in demo.model.modules()]


def test_a_seed_gives_the_same_again(bench: FaultBench, trial_of: Callable[[Fault], Trial]) -> None:
    fault = Fault(ENDS["mapping"], "mapping", 3)
    assert bench.trial(fault) == trial_of(fault)


def test_too_few_documents_for_the_reference_are_an_error(bench: FaultBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "SIZES", {**FEW, "train": 400})
    with pytest.raises(DataError, match=r"expected at least 600 train documents, .* got \d+ for the reference"):
        bench.trial(HEALTHY)


def test_the_command_prints_and_its_status_is_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [
        Trial(HEALTHY, diagnosis_of(None), diagnosis_of(None)),
        *trials("vision", 2, "vision"),
        *trials("vision", 1, "vision"),
    ]
    monkeypatch.setattr(command, "load", lambda _: None)
    monkeypatch.setattr(command, "load_dataset", lambda _: None)
    for faults, status in ((good, 0), (good + trials("mapping", 3, None), 1)):
        monkeypatch.setattr(command, "run_selfcheck", lambda *_, faults=faults, **__: Report(tuple(faults)))
        assert main(["selfcheck", "--seeds", "1"]) == status
        assert capsys.readouterr().out.splitlines()[-1] == ("passed" if status == 0 else "FAILED")
        assert main(["selfcheck", "--seeds", "1", "--json"]) == status
        assert json.loads(capsys.readouterr().out)["passed"] is (status == 0)
    assert main(["selfcheck", "--seeds", "0"]) == 1
    assert "Expected argument `seeds` to be at least 1, got 0." in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--seeds", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] and record["trials"] == 39
    assert record["named_correctly_at_strengths_2_and_3"] >= 0.95 and record["false_alarms"] == 0
