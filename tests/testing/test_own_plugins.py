"""This package's own models, data sets, probes, methods and interventions go through the checks for plugins."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.image_files import write_picture
from support.loading import write
from support.own_interventions import SPECS as INTERVENTIONS

from medmllm_plugins import ModelSpec, TaskFolder
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.plugins import builtin
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.testing import parametrize_with_checks
from medmllm_plugins.testing.bound_check import BoundCheck, checks_of
from medmllm_plugins.testing.check_subjects import InstalledPlugin
from medmllm_plugins.testing.resources import Resources
from medmllm_plugins.testing.tiny_families import FAMILIES, write_family

torch.set_num_threads(1)

REAL_DATA = os.environ.get("MEDMLLM_DATA")
MODELS = {spec.name: spec for spec in builtin.medmllm_models()}
FORMATS = {"medm_vl": "medm_vl", "medm_vl_ct": "medm_vl_ct", "llava_med": "old_llava"}
FORMATS |= {"hulu_med": "hulu_med", "internvl_chat": "internvl_chat"}
"""Models with a checkpoint format of their authors', and the tiny checkpoint of each."""
TASKS = TaskFolder(path="medmllm_plugins:tasks")
FAST = ("llava", "qwen2_5_vl")
OTHERS = [kind for kind in FAMILIES if kind not in FAST]
METHODS = {spec.name: spec for spec in builtin.medmllm_attributions()}
TARGET, ORDER = "check_maps_depend_on_the_target", "check_maps_beat_random_order"
WEIGHTS, LESIONS = "check_maps_depend_on_the_weights", "check_maps_find_phantom_lesions"
KNOWN = {
    "layer_activation": dict.fromkeys((TARGET, ORDER, LESIONS), "states do not depend on the target: a baseline"),
    "attention_rollout": dict.fromkeys(
        (TARGET, WEIGHTS, ORDER, LESIONS), "attention does not depend on the target: to compare others with"
    ),
    "layer_gradient_x_activation": {ORDER: "one linear step is a poor guide at the demo's first block"},
}
"""Methods that fail checks on the demo, and why."""


def of_family(kind: str) -> ModelSpec:
    return ModelSpec(name=kind, summary="A tiny random model.", family=kind)


def tiny(name: str) -> Callable[[Path], object]:
    return partial(write, FORMATS[name])


def write_sets(root: Path) -> None:
    """The layouts of busi and covid19_ct with a few images."""
    for label in ("benign", "malignant", "normal"):
        for number in range(1, 16):
            write_picture(root / "busi" / "Dataset_BUSI_with_GT" / label / f"{label} ({number}).png")
    for name in ("CT_COVID", "CT_NonCOVID"):
        for number in range(12):
            write_picture(root / "covid19_ct" / name / f"{name}{number}-p{number}.png")


def known_failures(spec: Any) -> dict[str, str]:
    if not isinstance(spec, AttributionSpec):
        return {}
    return KNOWN.get(spec.name, {})


@parametrize_with_checks([of_family(kind) for kind in FAST], device="cpu")
def test_families(spec: ModelSpec, check: BoundCheck) -> None:
    check(spec)


@parametrize_with_checks([MODELS["medm_vl"]], checkpoint="demo", device="cpu")
def test_the_demo(spec: ModelSpec, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.slow
@parametrize_with_checks(
    [ModelSpec(name=kind, summary="A tiny random model.") for kind in OTHERS],
    checkpoint={kind: partial(write_family, kind) for kind in OTHERS},
    device="cpu",
)
def test_all_families(spec: ModelSpec, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.slow
@parametrize_with_checks(
    [MODELS[name] for name in FORMATS], checkpoint={name: tiny(name) for name in FORMATS}, device="cpu"
)
def test_formats_of_authors(spec: ModelSpec, check: BoundCheck) -> None:
    check(spec)


@parametrize_with_checks([InstalledPlugin("builtin"), dataset_specs()["demo"]])
def test_declarations(spec: Any, check: BoundCheck) -> None:
    check(spec)


def test_all_declarations() -> None:
    names = ("check_task_files_are_read", "check_declaration_round_trips")
    checks = [check for check in checks_of(TASKS, Resources()) if check.name in names]
    assert len(checks) > 20
    for check in checks:
        check(check.spec)


@parametrize_with_checks([dataset_specs()[name] for name in ("busi", "covid19_ct")], data=write_sets)
def test_data_sets(spec: Any, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.slow
@pytest.mark.skipif(REAL_DATA is None, reason="MEDMLLM_DATA is not set: no real images")
@parametrize_with_checks([TASKS], data=REAL_DATA or "nowhere")
def test_real_data_sets(spec: Any, check: BoundCheck) -> None:
    check(spec)


@parametrize_with_checks([spec for spec in builtin.medmllm_probes() if spec.name == "linear"])
def test_probes(spec: Any, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.slow
@parametrize_with_checks([spec for spec in builtin.medmllm_probes() if spec.name != "linear"])
def test_all_probes(spec: Any, check: BoundCheck) -> None:
    check(spec)


@parametrize_with_checks([METHODS["layer_grad_cam"]])
def test_attribution_methods(spec: Any, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.slow
@parametrize_with_checks(
    [spec for name, spec in METHODS.items() if name not in ("layer_grad_cam", "kernel_shap")],
    expected_failed_checks=known_failures,
)
def test_all_attribution_methods(spec: Any, check: BoundCheck) -> None:
    check(spec)


@pytest.mark.exhaustive
@parametrize_with_checks([METHODS["kernel_shap"]], expected_failed_checks=known_failures)
def test_kernel_shap(spec: Any, check: BoundCheck) -> None:
    check(spec)


@parametrize_with_checks(INTERVENTIONS)
def test_interventions(spec: Any, check: BoundCheck) -> None:
    check(spec)
