"""The one-standard-error rule: analytic cases, a plain loop, and a gain that is too small to be worth anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.linear_probe import one_standard_error
from torch import Tensor

from medmllm_plugins.probes.probe_methods import ProbeData, fit_linear
from medmllm_plugins.probes.strength_selection import choose_strength


def choose(probabilities: list[Tensor], labels: Tensor, group: Tensor, frequencies: list[float]) -> int:
    """Choose for one layer and label set; probabilities (V, K) of each strength."""
    log_p = torch.stack(probabilities).log()[None, None]
    return int(choose_strength(log_p, labels[None], group, torch.tensor([frequencies])))


def two_classes(true: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (V, 2) with that of the true class given, (V,)."""
    return torch.where(torch.nn.functional.one_hot(labels, 2).bool(), true[:, None], 1 - true[:, None])


LABELS = torch.arange(100) % 2
OWN = torch.arange(100)


def test_the_most_regularised_within_one_standard_error() -> None:
    noise = torch.linspace(-0.1, 0.1, 100)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    # Mean losses rise from the last to the first; the paired difference has the standard deviation of the noise.
    error = float(noise.std()) / 10
    last = torch.full((100,), 0.5)
    losses = [last + 3 * error + noise, last + 0.9 * error + noise, last + 0.5 * error + noise, last]
    tables = [two_classes((-loss).exp(), LABELS) for loss in losses]
    assert choose(tables, LABELS, OWN, [1, 1]) == 1
    assert choose([tables[0], tables[3]], LABELS, OWN, [1, 1]) == 1
    # The same differences without noise are certain.
    exact = [two_classes(torch.full((100,), float((-loss).exp().mean())), LABELS) for loss in losses]
    assert choose(exact, LABELS, OWN, [1, 1]) == 3


def test_documents_of_a_group_count_together() -> None:
    noise = torch.tensor([0.1, -0.1]).repeat_interleave(5).repeat(10)
    losses = [torch.full((100,), 0.515) + noise, torch.full((100,), 0.5)]
    tables = [two_classes((-loss).exp(), LABELS) for loss in losses]
    assert choose(tables, LABELS, OWN, [1, 1]) == 1  # standard error 0.01
    assert choose(tables, LABELS, torch.arange(100) // 5, [1, 1]) == 0  # 0.02


def test_a_tiny_gain_of_a_probe_that_predicts_one_class_does_not_win() -> None:
    """One strength gains 0.004 nats and predicts the majority; a freer one gains less and reads some of the rest."""
    labels = torch.tensor([0] * 70 + [1] * 35 + [2] * 20)
    frequencies = [0.56, 0.28, 0.16]
    constant = torch.tensor(frequencies).expand(125, 3)
    stiff = 0.998 * constant + 0.002 * torch.nn.functional.one_hot(labels, 3)
    free = constant.clone()
    free[:8] = torch.tensor([0.185, 0.7, 0.115])  # eight of the majority are read as another class
    free[70:82] = torch.tensor([0.2, 0.6, 0.2])  # and twelve of that class correctly
    majority, stiff_loss, free_loss = (
        float(-table[torch.arange(125), labels].log().mean()) for table in (constant, stiff, free)
    )
    assert majority - stiff_loss == pytest.approx(0.004, abs=2e-4) and stiff_loss < free_loss < majority
    group = torch.arange(125)
    assert choose([constant, stiff, free], labels, group, frequencies) == 2
    # Where no probe beats the majority, that with the lowest loss stays.
    assert choose([constant, stiff], labels, group, frequencies) == 1
    assert choose([constant, constant], labels, group, frequencies) == 0


def test_features_without_the_class_take_the_lowest_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 120, 30, generator=generator)
    labels = (torch.arange(120) % 3)[None]
    data = ProbeData(features[:, :60], features[:, 60:], labels[:, :60], labels[:, 60:], 0, 3, (1e4, 1e-2, 1.0), 0)
    fitted = fit_linear(data)
    assert fitted.strength is not None and float(fitted.strength) == pytest.approx(1e-2)  # a grid in any order


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    documents=st.integers(6, 60),
    groups=st.integers(2, 30),
    classes=st.integers(2, 4),
    signal=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_the_choice_of_a_plain_loop(seed: int, documents: int, groups: int, classes: int, signal: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (2, documents), generator=generator)
    group = torch.unique(torch.randint(groups, (documents,), generator=generator), return_inverse=True)[1]
    if int(group.max()) == 0:
        group[0] = 1
    train_labels = torch.randint(classes, (2, 40), generator=generator)
    frequencies = torch.stack([torch.bincount(row, minlength=classes) for row in train_labels]).double()
    true = torch.nn.functional.one_hot(labels, classes)[None, :, None]
    sharpness = torch.linspace(0.1, 3, 5)[:, None, None]
    noise = torch.randn(3, 2, 1, documents, classes, generator=generator)
    wobble = 0.2 * torch.randn(3, 2, 5, documents, classes, generator=generator)
    log_p = (sharpness * (signal * true + noise + wobble)).double().log_softmax(-1)
    chosen = choose_strength(log_p, labels, group, frequencies)
    for layer, number in np.ndindex(3, 2):
        expected = one_standard_error(
            list(log_p[layer, number].exp().numpy()),
            labels[number].numpy(),
            group.numpy(),
            train_labels[number].numpy(),
        )
        assert int(chosen[layer, number]) == expected
