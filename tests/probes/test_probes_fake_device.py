"""Probes fitted and faults planted on another device: what comes of it on the CPU, and nothing left behind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_device import FAKE_DEVICE, FakeDevice, on_both_devices
from support.loading import load

from medmllm_plugins.features.hooks import ActivationHooks
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.probes import fitting, probe_methods
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.mlp import fit_mlp
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.validation.fault_kinds import KINDS, Fault
from medmllm_plugins.probes.validation.planted_faults import class_directions, plant_faults

QUESTIONS = ["What?", "Is it benign or malignant, and why?", "a"]
LABELS = ["benign", "malignant tumour", "no"]


class OneThread:
    """A pool whose work is done by the caller, since the other device is there in one thread alone."""

    map = staticmethod(map)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(Options(permutations=3, controls=2), marks=pytest.mark.slow),  # fitted in the next one too
        Options(permutations=2, controls=1, width=8),
        pytest.param(Options(permutations=2, controls=1, repeats=1), marks=pytest.mark.slow),
        pytest.param(Options(protocol="paper", permutations=0, controls=1), marks=pytest.mark.slow),
    ],
    ids=["linear", "projected", "folds", "paper"],
)
def test_probes_are_fitted_on_the_given_device(
    options: Options, make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.optim.AdamW
    # The fused kernel is there for GPUs and the CPU only.
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **kwargs: usual(*args, **kwargs))
    monkeypatch.setattr(fitting, "ThreadPoolExecutor", OneThread)
    # The training loop is the same for a few epochs of a narrow network.
    monkeypatch.setattr(probe_methods, "fit_mlp", functools.partial(fit_mlp, epochs=2, hidden=32))
    store, outcomes = make_store((60, 30, 45))
    here = analyse(store, outcomes, options, device=torch.device("cpu"))
    with FakeDevice():
        there = analyse(store, outcomes, options, device=FAKE_DEVICE)
    assert there.diagnosis.to_dict() == here.diagnosis.to_dict()


def every_fault(model: LoadedModel) -> dict[str, tuple[list[str], list[Any]]]:
    """Texts and scores that a model answers with each fault."""
    generator = np.random.default_rng(0)
    images: list[Any] = [Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in QUESTIONS]
    hooks = ActivationHooks(model, ("mean",))
    model.generate(QUESTIONS, images, max_new_tokens=0, watch=hooks)
    directions = {"connector": class_directions(hooks.activations["connector", "mean"].double(), ["a", "b", "c"])}
    hooks.close()
    by_fault = {}
    for name in KINDS:
        with plant_faults(model, Fault(name, 2), directions=directions, question=QUESTIONS[0], labels=LABELS):
            answers = model.generate(QUESTIONS, images, max_new_tokens=3, labels=LABELS)
        by_fault[name] = ([answer.text for answer in answers], [answer.scores for answer in answers])
    return by_fault


# Gemma's windows need other masks; that a blind Gemma is blind is proven on the CPU in test_planted_faults.py.
@pytest.mark.parametrize("kind", ["medm_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_faults_are_planted_where_the_model_stands(kind: str, tmp_path: Path) -> None:
    model = load(kind, tmp_path / "model")
    here, there = on_both_devices(model, lambda _: every_fault(model))
    assert len(here) == len(KINDS)
    for name, (texts, scores) in here.items():
        assert there[name][0] == texts, name
        np.testing.assert_allclose(there[name][1], scores, rtol=0, atol=1e-3, err_msg=name)
