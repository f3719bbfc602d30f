"""The diagnosis tried on other makes than the demo's, which its rules and the planted faults' grades were set on.

One seed of each; the figures of docs/diagnosis.md are of five:

    MEDMLLM_SELFCHECK_SEEDS=5 pytest -m exhaustive -s tests/probes/test_selfcheck_families.py
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from support.trained_families import KINDS, trained_family

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.validation import selfcheck
from medmllm_plugins.probes.validation.selfcheck import FaultBench, trials_for_seed
from medmllm_plugins.probes.validation.selfcheck_report import Report
from medmllm_plugins.probes.validation.simulated_stages import SimulatedStages

pytestmark = pytest.mark.exhaustive
torch.set_num_threads(1)
SEEDS = range(int(os.environ.get("MEDMLLM_SELFCHECK_SEEDS", "1")))
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
    chat = ChatModel(open_native(LoadOptions(str(folder), device="cpu")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "SIZES", {"train": 320, "validation": 160, "test": 280})
        bench = FaultBench(chat, some_phantoms(), tmp_path_factory.mktemp("bench"))
        planned = [trial for seed in SEEDS for trial in trials_for_seed(seed)]
        # Simulated stages need no model.
        result = Report(tuple(bench.trial(trial) for trial in planned if not isinstance(trial, SimulatedStages)))
    print(f"\n{request.param}\n{result.render()}")
    return result


def test_the_diagnosis_is_as_good_as_promised(report: Report) -> None:
    assert len(report.trials) == 18 * len(SEEDS)
    assert report.passed, report.render()
