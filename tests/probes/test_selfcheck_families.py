"""The diagnosis tried on other makes than the demo's, which its rules and the planted faults' grades were set on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.trained_families import KINDS, trained_family

from medmllm_plugins.data.catalogue import dataset_specs
from medmllm_plugins.data.dataset import Dataset, load_dataset
from medmllm_plugins.data.documents import Document
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes import selfcheck
from medmllm_plugins.probes.selfcheck import FIRM, Bench, Report, faults_of

pytestmark = pytest.mark.slow
torch.set_num_threads(1)
SEEDS = (0, 1)
TRAIN = 700
"""Train documents that the model is asked about: those of a trial, and those of the reference."""


def some_phantoms() -> Dataset:
    """The demo's data set with fewer train documents, whole patients kept."""
    phantoms = load_dataset(dataset_specs()["demo"])
    taken: list[Document] = []
    for document in phantoms.select(["train"]):
        if len(taken) >= TRAIN and document.group != taken[-1].group:
            break
        taken.append(document)
    return replace(phantoms, documents=(*taken, *phantoms.select(["validation", "test"])))


@pytest.fixture(scope="session", params=KINDS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """All trials on one family."""
    folder = trained_family(str(request.param), tmp_path_factory.getbasetemp())
    chat = ChatModel(open_native(LoadOptions(str(folder), device="cpu"), {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "SIZES", {"train": 320, "validation": 160, "test": 280})
        bench = Bench(chat, some_phantoms(), tmp_path_factory.mktemp("bench"))
        found = Report(tuple(bench.trial(fault) for seed in SEEDS for fault in faults_of(seed)))
    print(f"\n{request.param}\n{found.render()}")
    return found


def test_clear_and_heavy_faults_are_named_by_their_stage(report: Report) -> None:
    firm = [trial for trial in report.trials if trial.fault.mode != "none" and trial.fault.strength in FIRM]
    wrong = [trial.to_dict() for trial in firm if not trial.right]
    assert len(firm) == 8 * len(SEEDS)
    assert len(wrong) <= 1, wrong


def test_a_healthy_model_raises_no_alarm(report: Report) -> None:
    healthy = [trial for trial in report.trials if trial.fault.mode == "none"]
    assert len(healthy) == len(SEEDS)
    assert [trial.diagnosis.named for trial in healthy] == [None] * len(SEEDS), [one.to_dict() for one in healthy]


def test_mild_faults_are_not_charged_to_other_stages(report: Report) -> None:
    mild = [trial for trial in report.trials if trial.fault.mode != "none" and trial.fault.strength == 1]
    charged = [trial.to_dict() for trial in mild if trial.misattributed]
    assert len(mild) == 4 * len(SEEDS)
    assert len(charged) <= 1, charged
