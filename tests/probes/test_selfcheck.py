"""The selfcheck: what is tried, how diagnoses are judged and counted, and trials on the demo."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

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
from medmllm_plugins.probes.validation import selfcheck
from medmllm_plugins.probes.validation.fault_kinds import DESTROYING, HEALTHY, KINDS, PAIRS, STRENGTHS, Fault, names_of
from medmllm_plugins.probes.validation.selfcheck import (
    FaultBench,
    Planned,
    TaggedImages,
    simulated_trial,
    trials_for_seed,
)
from medmllm_plugins.probes.validation.selfcheck_report import (
    LIMITS,
    Judgement,
    Report,
    Trial,
    TrialGroup,
    group_of,
    judge,
    judge_faults,
)
from medmllm_plugins.probes.validation.simulated_stages import SimulatedStages
from medmllm_plugins.results.probe_records import HANDOVER, MODES, Diagnosis, Effect, Mode, ProbeAnalysis

FEW = {"train": 200, "validation": 80, "test": 120}


def diagnosis_of(named: Any, candidates: tuple[Any, ...] = (), supported: tuple[Mode, ...] = ()) -> Diagnosis:
    effects = tuple(
        Effect(mode=mode, loss=Estimate(0.0, 0.0, 0.0), verdict="supported" if mode in supported else "ruled out")
        for mode in MODES
    )
    return Diagnosis(effects=effects, named=named, candidates=candidates)


@pytest.fixture(scope="module")
def analysis() -> ProbeAnalysis:
    small = SimulatedStages(widths=(48, 64, 64), sizes={"train": 90, "validation": 60, "test": 90})
    return simulated_trial(small).analysis


def counted(analysis: ProbeAnalysis, group: TrialGroup, judgement: Judgement, count: int = 1) -> list[Trial]:
    trial = Trial(
        name=f"a {group} model",
        group=group,
        seed=0,
        judgement=judgement,
        judgement_without_reference="correct",
        analysis=analysis,
    )
    return [trial] * count


def test_a_seed_tries_every_mode_at_every_strength_and_every_group() -> None:
    for seed in range(3):
        planned = trials_for_seed(seed)
        assert planned[0] == (replace(HEALTHY, seed=seed),)
        faults = [faults for faults in planned if isinstance(faults, tuple)]
        assert {fault.seed for some in faults for fault in some} == {seed}
        destroying = [fault for some in faults if len(some) == 1 for fault in some if fault.kind.group == "destroying"]
        assert Counter((fault.kind.modes[0], fault.strength) for fault in destroying) == Counter(
            [(mode, strength) for mode in DESTROYING for strength in (2, 3)] + [(list(DESTROYING)[seed], 1)]
        )
        groups = {group_of(some) for some in faults}
        assert groups | {"lossless", "tagged"} == set(get_args(TrialGroup))
        kinds = [type(some) for some in planned]
        assert kinds.count(SimulatedStages) == 3 and kinds.count(TaggedImages) == 1


def test_twenty_seeds_try_every_kind_and_every_pair() -> None:
    faults = [some for seed in range(20) for some in trials_for_seed(seed) if isinstance(some, tuple)]
    single = {(some[0].name, some[0].strength) for some in faults if len(some) == 1}
    assert {name for name, _ in single} == set(KINDS)
    for group in ("form", "held-out form"):
        assert {(name, strength) for name in names_of(group) for strength in (2, 3)} <= single
    assert {name for name, _ in single if KINDS[name].group == "destroying"} == set(names_of("destroying"))
    assert {tuple(fault.name for fault in some) for some in faults if len(some) == 2} == set(PAIRS)


@pytest.mark.parametrize(
    ("modes", "interfaces", "diagnosis", "judgement"),
    [
        ((), (), diagnosis_of(None, supported=("connector",)), "correct"),
        ((), (), diagnosis_of("vision"), "wrong"),
        ((), (), diagnosis_of(HANDOVER, ("llm",)), "wrong"),
        (("connector",), ("connector -> llm",), diagnosis_of("connector"), "correct"),
        (("connector",), ("connector -> llm",), diagnosis_of("mapping"), "wrong"),
        (("connector",), ("connector -> llm",), diagnosis_of(None, supported=("mapping",)), "undecided"),
        (("connector",), ("connector -> llm",), diagnosis_of(HANDOVER, ("llm", "connector -> llm")), "correct"),
        (("connector",), ("connector -> llm",), diagnosis_of(HANDOVER, ("llm",)), "wrong"),
        (("vision", "mapping"), (), diagnosis_of(None, supported=("vision", "mapping")), "correct"),
        (("vision", "mapping"), (), diagnosis_of(None, supported=("vision", "connector")), "undecided"),
        (("vision", "mapping"), (), diagnosis_of(None), "undecided"),
    ],
)
def test_what_is_correct_undecided_and_wrong(modes: Any, interfaces: Any, diagnosis: Any, judgement: str) -> None:
    assert judge(modes, interfaces, diagnosis) == judgement


def test_an_unread_hand_over_does_not_name_a_stage_that_lost_the_class() -> None:
    diagnosis = diagnosis_of(HANDOVER, ("vision -> connector", "connector -> llm"))
    assert judge_faults((Fault("connector_lost", 3),), diagnosis) == "undecided"
    assert judge_faults((Fault("connector_signs", 3),), diagnosis) == "correct"
    assert judge_faults((Fault("blind", 3),), diagnosis) == "wrong"
    assert judge_faults((Fault("blind", 3), Fault("connector_signs", 3)), diagnosis) == "correct"
    assert judge_faults((HEALTHY,), diagnosis) == judge_faults((Fault("rounded_weights"),), diagnosis) == "wrong"


def test_groups_are_those_of_the_faults() -> None:
    assert group_of((HEALTHY,)) == "healthy"
    assert [group_of((Fault("blind", strength),)) for strength in STRENGTHS] == ["mild destroying"] + ["destroying"] * 2
    assert group_of((Fault("tower_signs"),)) == "form" and group_of((Fault("tower_absolute"),)) == "held-out form"
    assert group_of((Fault("tower_lost"), Fault("blind"))) == "pair"


def test_the_figures_are_those_counted_by_hand(analysis: ProbeAnalysis) -> None:
    report = Report(
        (
            *counted(analysis, "healthy", "correct", 19),
            *counted(analysis, "healthy", "wrong"),
            *counted(analysis, "destroying", "correct", 17),
            *[replace(trial, cost=cost) for cost in (0.2, 0.9) for trial in counted(analysis, "destroying", "correct")],
            *[replace(trial, cost=0.19) for trial in counted(analysis, "destroying", "undecided")],
            *counted(analysis, "form", "undecided", 3),
        )
    )
    assert report.counts("healthy") == {"correct": 19, "wrong": 1} and report.passed
    record = json.loads(json.dumps(report.to_dict()))
    assert record["passed"] and record["trials"] == 43 and set(record["groups"]) == {"healthy", "destroying", "form"}
    assert record["groups"]["destroying"] == {
        "correct": 19,
        "undecided": 1,
        "wrong": 0,
        "costly": {"correct": 2, "undecided": 0, "wrong": 0},
        "least_correct": 0.95,
        "most_wrong": 0.05,
        "kept": True,
    }
    lines = report.render().splitlines()
    judged = "destroying: 19 correct, 1 undecided, 0 wrong (required: at least 95% correct, at most 5% wrong)"
    assert f"{judged}; of the 2 that cost 20 points or more, 2 correct" in lines
    assert lines[-1] == "passed"


@pytest.mark.parametrize("group", get_args(TrialGroup))
def test_each_promise_can_be_broken_alone(analysis: ProbeAnalysis, group: TrialGroup) -> None:
    good = [trial for name in get_args(TrialGroup) for trial in counted(analysis, name, "correct", 10)]
    assert Report(tuple(good)).passed
    broken = Report((*good, *counted(analysis, group, "wrong", 2)))
    assert not broken.passed and "<- NOT KEPT" in broken.render()
    assert [name for name in get_args(TrialGroup) if not broken.keeps_limits(name)] == [group]
    undecided = Report((*good, *counted(analysis, group, "undecided", 2)))
    assert undecided.passed is (LIMITS[group][0] == 0)


def test_wrong_diagnoses_without_a_reference_are_counted(analysis: ProbeAnalysis) -> None:
    good = counted(analysis, "form", "correct", 18)
    wrong = [replace(trial, judgement_without_reference="wrong") for trial in good[:1]]
    assert Report((*good, *wrong)).wrong_without_reference == 1 / 19
    assert not Report((*good, *wrong)).passed and Report((*good, *good, *wrong)).passed


def test_a_trial_holds_all_that_rules_need(analysis: ProbeAnalysis) -> None:
    (trial,) = counted(analysis, "lossless", "correct")
    record = json.loads(json.dumps(trial.to_dict(), allow_nan=False))
    assert {"diagnosis", "diagnosis_without_reference", "points", "answer", "mapping"} <= set(record["analysis"])
    assert record["judgement"] == "correct" and "lossless" in trial.summary()


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
def trial_of(bench: FaultBench) -> Callable[[Planned], Trial]:
    """Run a trial once, since each takes seconds."""
    return functools.cache(bench.trial)


PLANTED = [
    (HEALTHY,),
    (Fault("tower_lost", 3),),
    (Fault("labels_permuted", 3),),
    pytest.param((Fault("connector_signs", 2),), marks=pytest.mark.slow),
    pytest.param((Fault("connector_lost", 3),), marks=pytest.mark.slow),
    pytest.param((Fault("blind", 3),), marks=pytest.mark.slow),
    pytest.param((Fault("tower_lost", 3), Fault("labels_permuted", 3)), marks=pytest.mark.slow),
    pytest.param((Fault("image_dark", 3),), marks=pytest.mark.slow),
]
"""A trial takes seconds. That the stages are named is also proven on stores whose truth is known (test_diagnosis.py),
and that faults break them and none before them in test_planted_faults.py."""


@pytest.mark.parametrize("planned", PLANTED, ids=lambda planned: "+".join(fault.name for fault in planned))
def test_no_model_is_diagnosed_wrongly_and_nothing_is_left_of_a_fault(
    trial_of: Callable[[Planned], Trial], demo: LoadedModel, planned: tuple[Fault, ...]
) -> None:
    before = {name: value.clone() for name, value in demo.model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in demo.model.modules()]
    trial = trial_of(planned)
    assert trial.judgement != "wrong" and trial.judgement_without_reference != "wrong", trial.to_dict()
    anchors = trial.analysis.anchors
    # The words are named only if findings in words are answered, or if their answers are renamed in the same way.
    spoken = anchors is not None and anchors.text == "answered"
    must_be_named = trial.group == "destroying" and (spoken or trial.faults[0].name != "labels_permuted")
    assert trial.judgement == "correct" or not must_be_named, trial.to_dict()
    assert all(torch.equal(value, before[name]) for name, value in demo.model.state_dict().items())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in demo.model.modules()]


def test_faults_of_the_words_leave_the_features_and_change_the_answers(trial_of: Callable[[Planned], Trial]) -> None:
    """They are evaluated without recording features again; the curves are those of the healthy model."""
    healthy, broken = (trial_of(planned).analysis for planned in ((HEALTHY,), (Fault("labels_permuted", 3),)))
    assert [point.accuracy for point in healthy.points] == [point.accuracy for point in broken.points]
    assert broken.answer.value < healthy.answer.value - 0.5
    assert healthy.anchors is not None and broken.anchors is not None and broken.anchors != healthy.anchors


@pytest.mark.slow
@pytest.mark.parametrize("folds", [FOLDS, ("train",)])
def test_a_tag_that_tells_the_class_is_warned_of(bench: FaultBench, folds: tuple[Any, ...]) -> None:
    trial = bench.trial(TaggedImages(folds, 0))
    assert trial.judgement == "correct" and trial.group == "tagged", trial.to_dict()
    healthy = bench.trial((HEALTHY,)).analysis.shortcuts
    assert healthy is not None and not healthy.warnings


@pytest.mark.slow
def test_a_seed_gives_the_same_again(bench: FaultBench, trial_of: Callable[[Planned], Trial]) -> None:
    planned = (Fault("labels_permuted", 3),)
    again, first = bench.trial(planned).to_dict(), trial_of(planned).to_dict()
    assert json.dumps({**again, "seconds": 0}) == json.dumps({**first, "seconds": 0})


def test_too_few_documents_for_the_reference_are_an_error(bench: FaultBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "SIZES", {**FEW, "train": 400})
    with pytest.raises(DataError, match=r"expected at least 600 train documents, .* got \d+ for the reference"):
        bench.trial((replace(HEALTHY, seed=99),))


def test_trials_are_written_as_they_come(
    analysis: ProbeAnalysis, demo: LoadedModel, some: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (trial,) = counted(analysis, "healthy", "correct")

    class Bench:
        def __init__(self, *_: object) -> None:
            pass

        def trial(self, _: object) -> Trial:
            return trial

    monkeypatch.setattr(selfcheck, "FaultBench", Bench)
    lines: list[str] = []
    report = selfcheck.selfcheck(demo, some, seeds=[0, 1], say=lines.append, output=tmp_path / "trials.jsonl")
    written = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(written) == len(lines) == len(report.trials) == sum(len(trials_for_seed(seed)) for seed in (0, 1))
    assert written[0] == json.loads(json.dumps(trial.to_dict()))


def test_the_command_prints_and_its_status_is_the_verdict(
    analysis: ProbeAnalysis,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    good = counted(analysis, "healthy", "correct")
    monkeypatch.setattr(command, "load", lambda _: None)
    monkeypatch.setattr(command, "load_dataset", lambda _: None)
    for trials, status in ((good, 0), (good + counted(analysis, "form", "wrong"), 1)):
        monkeypatch.setattr(command, "run_selfcheck", lambda *_, trials=trials, **__: Report(tuple(trials)))
        assert main(["selfcheck", "--seeds", "1"]) == status
        assert capsys.readouterr().out.splitlines()[-1] == ("passed" if status == 0 else "FAILED")
        assert main(["selfcheck", "--seeds", "1", "--json"]) == status
        assert json.loads(capsys.readouterr().out)["passed"] is (status == 0)
    assert main(["selfcheck", "--seeds", "0"]) == 1
    assert "Expected argument `seeds` to be at least 1, got 0." in capsys.readouterr().err
    (tmp_path / "trials.jsonl").touch()
    assert main(["selfcheck", "--output", str(tmp_path / "trials.jsonl")]) == 1
    assert "expected a new file for argument `output`" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_demo_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--seeds", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] and set(record["groups"]) == set(get_args(TrialGroup))
