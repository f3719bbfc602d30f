"""Each benchmark with a tiny size: both sides agree, and a difference between them is caught."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import harness, models
from benchmarks.__main__ import load
from benchmarks.cases import (
    attribution,
    bootstrap,
    capture,
    diagnosis,
    duplicates,
    generation,
    label_scoring,
    memory,
    paper_protocol,
    probe_fit,
    readers,
    report,
    startup,
)
from benchmarks.harness import ResultsDifferError, Run
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import DataError, ModelError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.formats.medm_vl_config import read_config
from medmllm_plugins.prompts.wording import closed_set
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import PIXELS

QUICK = ["capture", "duplicates", "generation", "label_scoring", "paper_protocol", "patching", "probe_fit"]
"""Those that take a moment; the others run with ``python -m benchmarks NAME --quick``."""


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the collection of garbage before each timing, which takes longer than the work of these sizes."""
    monkeypatch.setattr(harness.gc, "collect", lambda: None)


@pytest.mark.parametrize("name", QUICK)
def test_both_sides_agree(name: str) -> None:
    record = harness.run(load(name), size="quick")
    assert record.comparison.ratio > 0 and record.met is None
    json.dumps(record.to_dict())


def test_captured_features_are_in_the_store(tmp_path: Path) -> None:
    sides = capture.setup(Run("quick", "cpu", 1, tmp_path), documents=18)
    texts, folder = sides.ours()
    facts = sides.check((texts, folder), sides.baseline()) or {}
    store = FeatureStore(folder)
    assert len(store) == 18 and facts["bytes_a_document"] > 2 * 3072
    assert (facts["layers"], facts["sites"]) == (20, 28)
    assert list(store.index["answer"]) == texts and len(set(texts)) > 1


def test_bootstrap_loop_and_summary_give_the_same_intervals() -> None:
    rows = bootstrap.outcomes(200, 60)
    summary = summarise(rows, bootstrap.LABELS, None)
    resamples = bootstrap.loop(rows, resamples=100)
    bootstrap.check(summary, resamples)
    for name, values in resamples.items():
        estimate = summary.metrics[name]
        low, high = np.quantile(values, [0.025, 0.975])
        width = estimate.high - estimate.low
        assert abs(low - estimate.low) < 0.25 * width and abs(high - estimate.high) < 0.25 * width
    wrong = dataclasses.replace(summary, metrics={**summary.metrics, "auroc": Estimate(0.1, 0.0, 0.2)})
    with pytest.raises(ResultsDifferError, match="got auroc"):
        bootstrap.check(wrong, resamples)


def test_hidden_states_by_hand_are_those_recorded(tmp_path: Path) -> None:
    model = models.model_of_size("tiny", "cpu")
    members = models.phantom_documents({"train": 4, "validation": 1, "test": 2})
    assert [member.fold for member in members] == ["train"] * 4 + ["validation"] + ["test"] * 2
    assert len(models.answer_and_record(model, members, tmp_path, random_encoder=True)) == 2
    store = FeatureStore(tmp_path)
    states = diagnosis.hidden_states(model, members[3].picture)
    untrained = diagnosis.with_random_weights(model.loaded.model)
    controls = diagnosis.control_features(model, untrained, members[3].picture)
    recorded = {(layer.name, pooling) for layer in store.header.layers for pooling in layer.poolings}
    last = f"llm.{model.loaded.model.config.text_config.num_hidden_layers - 1:02d}"
    assert recorded - set(states) - set(controls) == {(last, "mean"), (last, "last")}
    for (layer, pooling), value in states.items():
        features = store.features(layer, pooling, np.array([3]))[0]
        np.testing.assert_allclose(features, value.numpy(), rtol=2e-3, atol=2e-3 * float(value.abs().max()))
    pixels = store.features(PIXELS, "mean", np.array([3]))[0]
    np.testing.assert_array_equal(controls[PIXELS, "mean"], pixels)
    norm = controls[f"{diagnosis.RANDOM_ENCODER}vision.norm", "mean"]
    assert not torch.allclose(norm, states["vision.norm", "mean"], atol=0.1)
    scored = store.index.groupby("fold", observed=True)["scores"].apply(lambda scores: scores.notna().all())
    assert scored.to_dict() == {"train": False, "validation": True, "test": True}


def evaluation(texts: str, **accuracy: float) -> diagnosis.Evaluation:
    sites = {"connector": ("connector", "mean"), "norm": ("llm.norm", "last"), "extra": ("llm.05", "last"),
             "random": (f"{diagnosis.RANDOM_ENCODER}connector", "mean")}  # fmt: skip
    return diagnosis.Evaluation(tuple(texts), {sites[name]: value for name, value in accuracy.items()}, {})


BASELINE = evaluation("ab", connector=0.5, norm=0.7, random=0.1)
ACCURACY = torch.full((2, 1 + probe_fit.CONTROLS + probe_fit.SHUFFLES), 0.8)


def lower(points: float, column: int) -> torch.Tensor:
    accuracy = ACCURACY.clone()
    accuracy[0, column] -= points / 100
    return accuracy


def probe_check(ours: torch.Tensor, baseline: torch.Tensor) -> Any:
    return probe_fit.check(ours, baseline, compared=(0, 1))


def mlp_check(ours: torch.Tensor, baseline: torch.Tensor) -> Any:
    return paper_protocol.check(ours, baseline, compared=(0, 1), tolerance=1.5)


def exact(ours: list[generation.Answer], baseline: list[generation.Answer]) -> None:
    generation.check(ours, baseline, exact=True)


def lengths(ours: list[generation.Answer], baseline: list[generation.Answer]) -> None:
    generation.check(ours, baseline, exact=False)


def scores(ours: list[list[float]], baseline: list[list[float]]) -> None:
    label_scoring.check(ours, baseline, tolerance=1e-3)


MODULES = {"modules": ["lmms_eval.models"], "models": 11}
WITH_OURS = {"modules": ["lmms_eval.models", startup.ENTRY_POINT, "torch"], "models": 12}
PAIRS = np.arange(200).reshape(100, 2)


@pytest.mark.parametrize(
    ("check", "ours", "baseline"),
    [
        (exact, [("a", 1), ("b", 2)], [("a", 1), ("b", 2)]),
        (lengths, [("a", 1), ("c", 2)], [("a", 1), ("b", 2)]),
        (scores, [[1.0, 2.0005]], [[1.0, 2.0]]),
        (readers.check, [1.0, 2.0], [1.0, 2.00001]),
        (duplicates.check, PAIRS[1:], PAIRS),
        (probe_check, lower(1.4, 0), ACCURACY),
        (probe_check, lower(1.6, -1), ACCURACY),  # of shuffled labels
        (probe_check, lower(-5.0, 0), ACCURACY),
        (mlp_check, torch.full((2,), 0.814), torch.full((2,), 0.8)),
        (
            partial(attribution.check, method="conductance"),
            [{"path": torch.tensor([1.0, 2.001])}],
            [{"path": torch.tensor([1.0, 2.0])}],
        ),
        (report.check, b"page", b"page"),
        (startup.check, WITH_OURS, MODULES),
        (diagnosis.check, evaluation("ab", connector=0.5, norm=0.715, extra=0.1, random=0.9), BASELINE),
    ],
)
def test_sides_that_agree_are_compared(check: Callable[..., Any], ours: Any, baseline: Any) -> None:
    assert check(ours, baseline) is None or isinstance(check(ours, baseline), dict)


@pytest.mark.parametrize(
    ("check", "ours", "baseline", "message"),
    [
        (exact, [("a", 1), ("c", 2)], [("a", 1), ("b", 2)], r"1 different ones of 2, .*\(1, \('b', 2\), \('c', 2\)\)"),
        (exact, [("a", 1), ("b", 3)], [("a", 1), ("b", 2)], "1 different"),
        (lengths, [("a", 1), ("b", 3)], [("a", 1), ("b", 2)], "1 different"),
        (scores, [[1.0, 2.1]], [[1.0, 2.0]], r"a difference of 0\.0999"),
        (scores, [[1.0, float("nan")]], [[1.0, 2.0]], "a difference of nan"),
        (readers.check, [1.0, 2.0], [1.0, 2.1], "the same pixels"),
        (duplicates.check, PAIRS[::2], PAIRS, "50 found by one side only, of 100"),
        (probe_check, lower(1.6, 0), ACCURACY, r"-1\.60 at worst"),
        (probe_check, lower(1.6, 2), ACCURACY, r"-1\.60 at worst"),
        (probe_check, ACCURACY + 0.006, ACCURACY, r"\+0\.60 on average"),
        (probe_check, ACCURACY + float("nan"), ACCURACY, "on average"),
        (mlp_check, torch.full((2,), 0.816), torch.full((2,), 0.8), "mean test accuracies"),
        (mlp_check, torch.full((2,), float("nan")), torch.full((2,), 0.8), "mean test accuracies"),
        (
            partial(attribution.check, method="conductance"),
            [{"path": torch.tensor([1.0, 2.1])}],
            [{"path": torch.tensor([1.0, 2.0])}],
            "at path",
        ),
        (report.check, b"page", b"other", "the same page"),
        (startup.check, MODULES, MODULES, r"\[False, False\]. Install the package"),
        (startup.check, WITH_OURS, WITH_OURS, r"\[True, True\]"),
        (diagnosis.check, evaluation("ac", connector=0.5, norm=0.7, random=0.1), BASELINE, "1 different answers"),
        (diagnosis.check, evaluation("ab", norm=0.7, random=0.1), BASELINE, r"at \[\('connector', 'mean'\)\]"),
        (diagnosis.check, evaluation("ab", connector=0.5, norm=0.73, random=0.1), BASELINE, r"got \+1\.50"),
    ],
)
def test_sides_that_differ_are_caught(check: Callable[..., Any], ours: Any, baseline: Any, message: str) -> None:
    with pytest.raises(ResultsDifferError, match=message):
        check(ours, baseline)


def test_images_are_the_test_fold_with_the_question_of_the_demo_task() -> None:
    spec = dataset_specs()["demo"]
    assert closed_set(spec.modality, spec.labels) == models.QUESTION
    assert [(picture.size, picture.mode) for picture in models.phantom_images(3)] == [((64, 64), "RGB")] * 3


def test_the_large_model_has_the_published_shapes() -> None:
    """Counted by hand from the shapes; d is the width, f that of the MLP."""
    config = read_config(models.CHECKPOINTS / "medm_vl_3b")
    with torch.device("meta"):
        model: Any = models.LlavaForConditionalGeneration(medm_vl.llava_config(config, 7))
    d, f, kv = 2048, 11008, 2 * 128
    attention = 2 * d * d + 2 * d * kv + d + 2 * kv
    llm = 151_936 * d + 36 * (attention + 3 * d * f + 2 * d) + d
    v, g = 768, 3072
    tower = v * (3 * 16 * 16 + 1) + 256 * v + 12 * (4 * v * v + 2 * v * g + 5 * v + g + 4 * v) + 2 * v
    connector = v * d + d + d * d + d
    assert model.model.language_model.num_parameters() == llm == 3_085_938_688
    assert model.model.vision_tower.num_parameters() == tower == 85_843_200
    assert model.num_parameters() == llm + tower + connector == 3_177_553_152
    assert (config.image_tokens, config.vision.image_size, config.max_length) == (256, 256, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_answer_at_full_length_on_both_sides(dtype: torch.dtype) -> None:
    demo = models.model_of_size("tiny", "cpu")
    model = models.random_model(read_config(demo_folder()), dtype, torch.device("cpu"))
    network: Any = model.loaded.model
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert not any(value.is_meta or value.requires_grad for value in (*network.parameters(), *network.buffers()))
    assert network.lm_head.weight is network.model.language_model.embed_tokens.weight and not network.training
    expected = demo.loaded.model.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(network.model.language_model.rotary_emb.inv_freq, expected, rtol=0, atol=0)
    assert network.lm_head.weight.float().std() == pytest.approx(0.02, rel=0.02)
    pictures = models.phantom_images(3)
    plain, fast = generation.one_by_one(model, pictures), generation.batched(model, pictures)
    assert [tokens for _, tokens in plain] == [tokens for _, tokens in fast] == [16, 16, 16]
    generation.check(fast, plain, exact=dtype == torch.float32)


def test_a_model_too_large_for_the_machine_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 10**9}))
    with pytest.raises(ModelError, match=r"Expected 15\.3 GB of memory on cpu .* got 1\.0 GB. Use `--size tiny`"):
        models.model_of_size("3b", "cpu")


def test_memory_store_is_read_and_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.write_store(tmp_path, 640, layers=3, width=8, pixel_width=16)
    store = FeatureStore(tmp_path)
    store.check()
    assert len(store) == 640 and store.index["shard"].nunique() == 3
    readings = iter((100.0, 300.0, 299.9, 400.0))  # the kernel's counters are estimates; a peak never falls
    monkeypatch.setattr(memory, "peak_memory_mb", lambda: next(readings))
    peaks = memory.read_and_fit(tmp_path)
    assert peaks["by_stage"] == {"import": 100, "open": 300, "samples": 300, "fit": 400}
    assert peaks["rows"] == {"train": 512, "validation": 64, "test": 64}


def test_memory_is_that_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process is read from /proc")
    ballast = np.ones(40_000_000)  # 320 MB, which the other process must not be charged with
    reading = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1e3"
    monkeypatch.setattr(memory, "_CHILD", f"import json; print(json.dumps({{'by_stage': {{'fit': {reading}}}}}))")
    assert 0 < memory.peaks_in_child(tmp_path)["by_stage"]["fit"] < 100 < ballast.nbytes / 1e6
    monkeypatch.setattr(memory, "_CHILD", "raise SystemExit('broken on purpose')")
    with pytest.raises(DataError, match=r"got status 1: .broken on purpose"):
        memory.peaks_in_child(tmp_path)


def test_startup_leaves_out_our_entry_point_alone(tmp_path: Path) -> None:
    ours, baseline = (startup.import_once(tmp_path, side) for side in ("with", "without"))
    facts = startup.check(ours, baseline)
    assert not facts["torch_imported_by_us"] and facts["models_added"] > 0
    assert not any(name.split(".")[0] == "medmllm_plugins" for name in baseline["modules"])
    assert list(tmp_path.rglob("entry_point.*.pyc"))
