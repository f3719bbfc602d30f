"""The batched probes are an ordinary module, trained with torch's own parts under the same draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.probes import mlp
from medmllm_plugins.probes.mlp import BATCH, DECAY, DROPOUT, HIDDEN, RATE, batches, fit_mlp, initial, rate
from medmllm_plugins.probes.probe_methods import ProbeData, fit_paper_mlp


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Drawn(nn.Module):
    """Dropout of the units that were drawn."""

    mask: Tensor

    def forward(self, units: Tensor) -> Tensor:
        return units * self.mask if self.training else units


def plain(
    train: Tensor, target: Tensor, classes: int, seed: int, epochs: int, hidden: int, dropout: float
) -> nn.Module:
    """One probe of one layer, in the usual way; ``train`` (N, D) is standardised."""
    rows, width = train.shape
    drop = Drawn()
    model = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), drop, nn.Linear(hidden, classes))
    start = initial(width, hidden, classes, seed)
    state = {"0.weight": start.first.T, "0.bias": start.first_0, "3.weight": start.second.T, "3.bias": start.second_0}
    model.load_state_dict(state)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * math.ceil(rows / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    for at, mask in batches(rows, epochs, hidden, dropout, seed):
        drop.mask = mask
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train[at]), target[at]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def make(layers: int, rows: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (L, N, D) and classes (N,) that they tell."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (rows,), generator=generator)
    means = torch.randn(layers, classes, width, generator=generator)
    return 2 + means[:, truth] + torch.randn(layers, rows, width, generator=generator), truth


def standardised(rows: Tensor, train: Tensor) -> Tensor:
    return (rows - train.mean(0)) / train.std(0, correction=0)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("rows", [40, 42])
def test_each_probe_is_an_ordinary_module(rows: int, dropout: float) -> None:
    features, truth = make(3, rows + 10, 24, 3)
    train, held_out = features[:, :rows], features[:, rows:]
    targets = torch.stack([truth[:rows], truth[:rows].flip(0)])
    outputs = fit_mlp(train, targets, classes=3, seed=7, epochs=6, hidden=32, dropout=dropout).logits(held_out)
    for layer in range(3):
        for labels in range(2):
            model = plain(standardised(train[layer], train[layer]), targets[labels], 3, 7, 6, 32, dropout)
            with torch.no_grad():
                expected = model(standardised(held_out[layer], train[layer]))
            torch.testing.assert_close(outputs[layer, labels], expected, atol=1e-4, rtol=1e-4)


def test_a_single_probe_of_the_default_width() -> None:
    features, truth = make(1, 30, 16, 2)
    outputs = fit_mlp(features, truth[None], classes=2, seed=0, epochs=3, dropout=0).logits(features)
    rows = standardised(features[0], features[0])
    model = plain(rows, truth, 2, 0, 3, HIDDEN, 0.0)
    with torch.no_grad():
        expected = model(rows)
    torch.testing.assert_close(outputs[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2 * 12 * 16, 6 * 12 * 16])  # a probe, two label sets, two layers of all label sets
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    features, truth = make(5, 24, 12, 3)

    targets = torch.stack([truth, truth.flip(0), truth.roll(1)])

    def fit() -> Tensor:
        return fit_mlp(features, targets, classes=3, seed=0, epochs=2, hidden=16).logits(features)

    expected = fit()
    monkeypatch.setattr(mlp, "_PARAMETERS", {"cpu": size})
    torch.testing.assert_close(fit(), expected, atol=1e-5, rtol=1e-5)


def test_it_learns_and_the_seed_decides() -> None:
    features, truth = make(2, 120, 24, 3)
    first, again, other = (
        fit_mlp(features, truth[None], classes=3, seed=seed, epochs=15, hidden=64).logits(features)
        for seed in (0, 0, 1)
    )
    assert float((first.argmax(-1) == truth).float().mean()) > 0.8  # chance is a third
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_schedule() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == 0 and rates[25] == 0.5 and rates[50] == 1
    assert rates[525] == pytest.approx(0.5) and rates[999] < 1e-5
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rate(0, 1) == 0


def test_every_row_is_seen_once_an_epoch_and_a_tenth_of_the_units_dropped() -> None:
    drawn = list(batches(101, 3, 64, DROPOUT, seed=0))
    assert len(drawn) == 3 * 26
    for epoch in range(3):
        seen = torch.cat([at for at, _ in drawn[26 * epoch : 26 * (epoch + 1)]])
        assert sorted(seen.tolist()) == list(range(101))
    mask = torch.cat([factors for _, factors in drawn])
    assert float((mask == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(mask.mean()) == pytest.approx(1, abs=0.01)


def test_constant_features_contribute_nothing() -> None:
    features, truth = make(1, 24, 12, 2)
    features[..., 3] = 5
    probes = fit_mlp(features, truth[None], classes=2, seed=0, epochs=2, hidden=8)
    assert bool(probes.logits(features).isfinite().all())
    assert float(probes.scale[0, 3]) == 1


@settings(max_examples=10)
@given(
    layers=st.integers(1, 3),
    rows=st.integers(1, 9),
    width=st.integers(1, 6),
    classes=st.integers(2, 4),
    sets=st.integers(1, 3),
    hidden=st.integers(1, 5),
)
def test_any_shape(layers: int, rows: int, width: int, classes: int, sets: int, hidden: int) -> None:
    features, truth = make(layers, rows, width, classes)
    probes = fit_mlp(features, truth.expand(sets, -1), classes=classes, seed=0, epochs=1, hidden=hidden)
    logits = probes.logits(features[:, :1])
    assert logits.shape == (layers, sets, 1, classes)
    assert bool(logits.isfinite().all())


def test_arguments_are_checked() -> None:
    features, truth = make(2, 12, 6, 3)
    probes = fit_mlp(features, truth[None], classes=3, seed=0, epochs=1, hidden=4)
    with pytest.raises(OptionError, match="`features` to have the shape"):
        probes.logits(features[:1])
    with pytest.raises(OptionError, match=r"`targets` to be int64 of the shape \(label sets, 12\)"):
        fit_mlp(features, truth, classes=3, seed=0)
    with pytest.raises(OptionError, match="`targets` to hold classes from 0 to 1"):
        fit_mlp(features, truth[None], classes=2, seed=0)
    with pytest.raises(OptionError, match="`epochs` and `hidden` to be at least 1"):
        fit_mlp(features, truth[None], classes=3, seed=0, dropout=1)
    with pytest.raises(OptionError, match="`train` to be float32"):
        fit_mlp(features.double(), truth[None], classes=3, seed=0)


def test_features_that_are_not_finite_are_named() -> None:
    features, truth = make(2, 12, 6, 3)
    probes = fit_mlp(features, truth[None], classes=3, seed=0, epochs=1, hidden=4)
    features[1, 5, 2] = math.nan
    with pytest.raises(DataError, match="got nan in layer 1, row 5, column 2"):
        probes.logits(features)
    with pytest.raises(DataError, match="got nan in layer 1, row 5, column 2"):
        fit_mlp(features, truth[None], classes=3, seed=0)


def test_log_probabilities_are_those_of_the_real_labels() -> None:
    features, truth = make(2, 30, 8, 3)
    labels = torch.stack([truth, truth.roll(1)])
    data = ProbeData(
        features[:, :20].contiguous(), features[:, 20:].contiguous(), labels[:, :20], labels[:, 20:], 1, 3, (), 0
    )
    fitted = fit_paper_mlp(data)
    assert fitted.log_p is not None
    log_p = fitted.log_p(data.validation)
    expected = fit_mlp(data.train, labels[:1, :20], classes=3, seed=0).logits(data.validation)[:, 0].log_softmax(-1)
    torch.testing.assert_close(log_p, expected, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.nll_loss(log_p.mT, truth[20:].expand(2, -1), reduction="none").mean(1)
    torch.testing.assert_close(fitted.validation_loss, loss)
    assert torch.equal(fitted.validation, log_p.argmax(-1))


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    features, truth = make(3, 40, 24, 3)
    outputs = [
        fit_mlp(features.to(device), truth[None], classes=3, seed=0, epochs=5, hidden=32)
        .logits(features.to(device))
        .cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-3, rtol=1e-3)
