"""Every family on a GPU against the CPU in float32: answers, label scores, features, patching, memory and kernels.

Each test runs on the CPU as well (slow), in the dtype that the GPU would have, so that the code is known to work before
a GPU sees it.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support.asking import LABELS, QUESTIONS, ask, visuals
from support.loading import ALL, CT, open_model, write

from medmllm_plugins.interventions.twin_patching import patch_sites, patch_twins
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.probes.logistic import RowSpace, solve
from medmllm_plugins.testing.tiny_families import FAMILIES

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)]
KINDS = (*ALL, CT)
FLOAT32 = 0.02
"""Largest difference of a label score in float32, in nats: a GPU convolves patches in TensorFloat-32."""
BFLOAT16 = 0.05
"""Largest difference of a label score in bfloat16, as a share of the score (8 bits of mantissa: 0.4% a rounding)."""
FEATURES = 0.05
"""Largest root mean square of the difference of features in bfloat16, as a share of that of the features."""
AMPLIFIED = {"qwen3_5": 0.25, "gemma4_moe": 0.15}
"""The same where blocks have linear attention, whose random weights pass on the errors of all tokens before, or four
blocks each send tokens to experts by rounded scores. Their label scores may differ three times as much."""


def scores(model: LoadedModel) -> np.ndarray:
    """Return the label scores of three documents, (3, labels)."""
    answers = model.generate(QUESTIONS, visuals(model), max_new_tokens=0, labels=list(LABELS))
    return np.array([answer.scores for answer in answers])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_label_scores_answers_and_features(kind: str, device: str, tmp_path: Path) -> None:
    folder = write(kind, tmp_path / "model")
    expected, kept = ask(open_model(kind, folder), tmp_path / "cpu")
    exact, _ = ask(open_model(kind, folder, device=device), tmp_path / "float32")
    for got, wanted in zip(exact, expected, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=FLOAT32)
    rounded, content = ask(open_model(kind, folder, device=device, dtype="bfloat16"), tmp_path / "bfloat16")
    for got, wanted in zip(rounded, expected, strict=True):
        assert got.scores == pytest.approx(wanted.scores, rel=3 * BFLOAT16 if kind in AMPLIFIED else BFLOAT16)
        assert got.tokens is not None and 0 <= got.tokens <= 4
    rows = np.arange(len(QUESTIONS))
    assert content.header.layers == kept.header.layers
    for layer in kept.header.layers:
        for pooling in layer.poolings:
            if pooling == "answer":  # of another token, where two are nearly as likely
                continue
            wanted_rows = kept.features(layer.name, pooling, rows).astype(np.float64)
            difference = content.features(layer.name, pooling, rows).astype(np.float64) - wanted_rows
            share = np.sqrt((difference**2).mean()) / max(np.sqrt((wanted_rows**2).mean()), 1e-3)
            assert share < AMPLIFIED.get(kind, FEATURES), (layer.name, pooling, share)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_patched_states(kind: str, device: str, tmp_path: Path) -> None:
    folder = write(kind, tmp_path / "model")

    def patched(where: str) -> dict[str, list[Any]]:
        model = open_model(kind, folder, device=where)
        twin = copy.copy(model)
        twin.model = copy.deepcopy(model.model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, weight in sorted(twin.model.named_parameters()):
                if weight.dim() > 1:
                    noise = torch.randn(weight.shape, generator=generator).to(weight)
                    weight.add_(0.3 * weight.std() * noise)
        sites = patch_sites(model, every=1)
        shown = visuals(model)[1:2] * 2
        forward, _ = patch_twins(model, twin, QUESTIONS[1], shown, LABELS, sites, max_new_tokens=2)
        return {str(site): [answer.scores for answer in answers] for site, answers in forward.items()}

    expected = patched("cpu")
    for site, rows in patched(device).items():
        np.testing.assert_allclose(rows, expected[site], atol=FLOAT32, err_msg=site)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_spread_over_devices(kind: str, device: str, tmp_path: Path) -> None:
    folder = write(kind, tmp_path / "model")
    spread = open_model(kind, folder, device=device, device_map="auto")
    np.testing.assert_allclose(scores(spread), scores(open_model(kind, folder)), atol=FLOAT32)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_of_four_bits(kind: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed, which quantises weights: pip install bitsandbytes")
    folder = write(kind, tmp_path / "model")
    model = open_model(kind, folder, device="cuda", dtype="bfloat16", load_in="4bit")
    got, wanted = scores(model), scores(open_model(kind, folder))
    assert np.isfinite(got).all()
    # Four bits are a coarse grid for random weights: the scores stay of the same size.
    assert np.abs(got - wanted).mean() < 0.5 * np.abs(wanted).mean()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if not kind.startswith("gemma4")])  # has no such kernel
def test_flash_attention(kind: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed, whose kernels are compared: pip install flash-attn")
    folder = write(kind, tmp_path / "model")
    flash = open_model(kind, folder, device="cuda", dtype="bfloat16", attn_implementation="flash_attention_2")
    np.testing.assert_allclose(scores(flash), scores(open_model(kind, folder)), rtol=BFLOAT16)


@pytest.mark.parametrize("device", DEVICES)
def test_fits_equal_those_of_scikit_learn(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    rows = torch.randn(2, 300, 40, generator=generator) + torch.randn(2, 3, 40, generator=generator)[:, labels]
    held_out = torch.randn(2, 50, 40, generator=generator)
    space = RowSpace(rows.to(device))
    solution = solve(space, labels[None].to(device), torch.tensor([0.01, 1.0]), classes=3)
    chances = solution.logits(space.coordinates(held_out.to(device))).softmax(-1).cpu().numpy()
    for site in range(2):
        train = rows[site].numpy()
        centre = train.mean(0)
        scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
        for number, strength in enumerate((0.01, 1.0)):
            plain = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8)
            plain.fit((train - centre) / scale, labels.numpy())
            wanted = plain.predict_proba((held_out[site].numpy() - centre) / scale)
            np.testing.assert_allclose(chances[site, 0, number], wanted, atol=2e-3)
