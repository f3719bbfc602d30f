"""The fits are scikit-learn's, whatever shape, strength and labels; batched and single fits are the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from support.linear_probe import scaled
from torch import Tensor

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.probes import logistic, row_space
from medmllm_plugins.probes.logistic import STRENGTHS, Solution, solve
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData, fit_linear
from medmllm_plugins.probes.row_space import RowSpace

Array = npt.NDArray[Any]
GRID = torch.tensor(STRENGTHS)
CLOSE = {strength: 1e-2 if strength > 1e3 else 1e-3 for strength in STRENGTHS}
"""Largest difference of a probability from scikit-learn's.

At the free end the objective is so flat that its last hundred-millionth is some thousandths of a probability.
"""
HELD_OUT = 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(
    layers: int, rows: int, width: int, classes: int, *, held_out: int = HELD_OUT, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features with a decaying spectrum, rounded as in the store: train rows, held-out rows, classes of the former."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows + held_out,), generator=generator)
    truth[:classes] = torch.arange(classes)[:rows]
    mix = torch.randn(layers, width, width, generator=generator) / math.sqrt(width)
    decay = torch.arange(1, width + 1).pow(-0.5)
    hidden = torch.randn(layers, rows + held_out, width, generator=generator)
    hidden += 0.7 * torch.randn(layers, classes, width, generator=generator)[:, truth]
    features = ((hidden * decay) @ mix + 0.5).half().float()
    return features[:, :rows].contiguous(), features[:, rows:].contiguous(), truth[:rows]


def reference(
    train: Tensor, held_out: Tensor, target: Tensor, strength: float, row_weights: Tensor | None = None
) -> tuple[Array, Array, Array]:
    """Probabilities on held-out rows, objective and classes of scikit-learn's solution."""
    rows = scaled(train.numpy(), train.numpy())
    counted = np.ones(len(rows)) if row_weights is None else row_weights.numpy()
    used = counted > 0
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=50_000)
    model.fit(rows[used], target.numpy()[used], sample_weight=counted[used])
    log_p = model.predict_log_proba(rows[used])
    at = np.searchsorted(model.classes_, target.numpy()[used])
    losses = -log_p[np.arange(len(log_p)), at]
    objective = strength * (counted[used] * losses).sum() + (model.coef_**2).sum() / 2
    return model.predict_proba(scaled(train.numpy(), held_out.numpy())), objective, model.classes_


def objective(space: RowSpace, solution: Solution, targets: Tensor, strength: Tensor) -> Tensor:
    """(L, P, G) scikit-learn's objective at a solution, in float64; ``strength`` (L, P, G), ``targets`` (L, P, N)."""
    exact = Solution(solution.weights.double(), solution.intercepts.double(), *_rest(solution))
    log_p = exact.logits(space.train.double()).log_softmax(-1)
    index = targets[:, :, None, :, None].expand(*log_p.shape[:-1], 1)
    loss = -log_p.gather(-1, index).sum((-1, -2))
    occurring = (torch.nn.functional.one_hot(targets, log_p.shape[-1]).sum(2) > 0).sum(-1)
    square = exact.weights.square().sum((-1, -2)) * torch.where(occurring == 2, 2, 1)[..., None]
    return strength * loss + square / 2


def _rest(solution: Solution) -> tuple[Tensor, Tensor, Tensor]:
    return solution.gradient_norm, solution.converged, solution.steps


def check(train: Tensor, held_out: Tensor, targets: Tensor, *, classes: int, grid: Tensor = GRID) -> None:
    """Compare each problem with scikit-learn; ``targets`` (P, N) or (L, P, N)."""
    space = RowSpace(train)
    solution = solve(space, targets, grid, classes=classes)
    assert bool(solution.converged.all()), solution.gradient_norm
    each = targets.expand(len(train), *targets.shape[-2:])
    shape = solution.steps.shape
    strength = grid.expand(shape) if grid.ndim == 1 else grid[..., None]
    ours = objective(space, solution, each, strength.double())
    chance = solution.logits(space.coordinates(held_out)).softmax(-1)
    for layer, labels, point in np.ndindex(*shape):
        target = each[layer, labels]
        expected, best, occurring = reference(
            train[layer], held_out[layer], target, float(strength[layer, labels, point])
        )
        theirs = np.zeros((len(expected), classes))
        theirs[:, occurring] = expected
        close = CLOSE[round(float(strength[layer, labels, point]), 2)]
        np.testing.assert_allclose(chance[layer, labels, point].numpy(), theirs, atol=close)
        assert float(ours[layer, labels, point]) == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "classes"),
    [
        *[(60, 200, 2), (150, 40, 9), (64, 64, 3)],  # each form and each number of classes once, all pairs if slow
        *[
            pytest.param(rows, width, classes, marks=pytest.mark.slow)
            for rows, width, once in ((60, 200, 2), (150, 40, 9), (64, 64, 3))
            for classes in {2, 3, 9} - {once}
        ],
    ],
)
def test_every_strength_is_as_in_scikit_learn(rows: int, width: int, classes: int) -> None:
    train, held_out, truth = make(2, rows, width, classes)
    generator = torch.Generator().manual_seed(5)
    permuted = truth[torch.randperm(rows, generator=generator)]
    check(train, held_out, torch.stack([truth, permuted]), classes=classes)


@pytest.mark.parametrize("width", [30, 200])
def test_constant_copied_and_badly_scaled_columns(width: int) -> None:
    train, held_out, truth = make(1, 90, width, 3)
    for part in (train, held_out):
        part[..., 0] = 3.25
        part[..., 1] = 0
        part[..., 2:6] = part[..., 6:7]
        part[..., 7] *= 1e4
        part[..., 8] = part[..., 8] * 1e4 + 1e4
        part[..., 9] *= 1e-4
    check(train, held_out, truth[None], classes=3)


@pytest.mark.parametrize("width", [20, 120])
def test_absent_classes_are_left_out_as_scikit_learn_does(width: int) -> None:
    train, held_out, truth = make(1, 70, width, 4)
    two = torch.where(truth < 2, 1, 3)
    three = truth.clamp_max(2)
    one_row = torch.zeros_like(truth)
    one_row[11] = 2
    check(train, held_out, torch.stack([two, three, one_row, truth]), classes=4)


def test_a_single_class_is_always_predicted() -> None:
    train, held_out, _ = make(1, 30, 50, 3)
    space = RowSpace(train)
    solution = solve(space, torch.full((1, 30), 1), GRID, classes=3)
    assert bool(solution.converged.all()) and int(solution.steps.max()) == 0
    logits = solution.logits(space.coordinates(held_out))
    assert bool(logits.isfinite().all())
    assert bool((logits.softmax(-1)[..., 1] > 1 - 1e-6).all())


def test_labels_and_strengths_of_each_layer() -> None:
    train, held_out, truth = make(3, 60, 90, 3)
    generator = torch.Generator().manual_seed(1)
    targets = torch.stack(
        [torch.stack([truth[torch.randperm(60, generator=generator)] for _ in range(2)]) for _ in range(3)]
    )
    strengths = 10.0 ** torch.randint(-2, 5, (3, 2), generator=generator)
    check(train, held_out, targets, classes=3, grid=strengths)


@pytest.mark.parametrize(("rows", "width"), [(60, 200), (150, 40)])
def test_row_weights_are_scikit_learns_sample_weights(rows: int, width: int) -> None:
    train, held_out, truth = make(2, rows, width, 3)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(rows, (2, rows), generator=generator)
    counts = torch.stack([torch.bincount(indices, minlength=rows) for indices in drawn])  # some rows have weight 0
    absent = torch.where(truth == 2, 0.0, 1.5)
    weights = torch.stack([*counts, absent, 3 * torch.rand(rows, generator=generator)])
    targets = torch.stack([truth, truth.roll(3), truth, truth])
    space = RowSpace(train)
    solution = solve(space, targets, GRID, classes=3, row_weights=weights)
    assert bool(solution.converged.all())
    chance = solution.logits(space.coordinates(held_out)).softmax(-1)
    for layer, labels, point in np.ndindex(*solution.steps.shape):
        expected = reference(train[layer], held_out[layer], targets[labels], float(GRID[point]), weights[labels])[0]
        ours = chance[layer, labels, point].numpy()
        np.testing.assert_allclose(ours[:, : expected.shape[1]], expected, atol=CLOSE[STRENGTHS[point]])
        assert expected.shape[1] == 3 or bool((ours[:, 2] < 1e-6).all())


def test_row_weights_of_one_and_repeated_rows_change_nothing() -> None:
    train, _, truth = make(1, 50, 80, 3)
    space = RowSpace(train)
    plain = solve(space, truth[None], GRID, classes=3)
    weighted = solve(space, truth[None], GRID, classes=3, row_weights=torch.ones(1, 50, dtype=torch.int64))
    torch.testing.assert_close(weighted.weights, plain.weights)
    # Doubling all weights is the same as doubling the inverse strength.
    doubled = solve(space, truth[None], GRID, classes=3, row_weights=torch.full((1, 50), 2))
    free = solve(space, truth[None], 2 * GRID, classes=3)
    torch.testing.assert_close(doubled.weights, free.weights, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("rows", [70, 150])
def test_a_probe_depends_on_inner_products_alone(rows: int) -> None:
    """An isometric stage of any width, a scale and an offset change neither predictions nor losses nor the strength."""
    train, held_out, truth = make(1, rows, 96, 3, held_out=60, seed=2)
    generator = torch.Generator().manual_seed(4)
    labels = torch.stack([truth, truth.roll(5)])
    held_out_labels = torch.randint(3, (2, 60), generator=generator)

    def fit(change: Callable[[Tensor], Tensor]) -> tuple[FittedProbe, Tensor]:
        data = ProbeData(change(train), change(held_out), labels, held_out_labels, 1, 3, STRENGTHS, 0)
        fitted = fit_linear(data)
        assert fitted.log_p is not None
        return fitted, fitted.log_p(data.validation)

    usual, usual_log_p = fit(lambda features: features)
    isometries = [torch.linalg.qr(torch.randn(width, 96, generator=generator))[0].mT for width in (1024, 2048)]
    assert all(torch.allclose(isometry @ isometry.mT, torch.eye(96), atol=1e-5) for isometry in isometries)
    changes = [
        *((lambda features, q=q: features @ q) for q in isometries),
        lambda features: 7 * features,
        lambda features: features + 3,
    ]
    for change in changes:
        fitted, log_p = fit(change)
        torch.testing.assert_close(log_p, usual_log_p, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(fitted.validation_loss, usual.validation_loss, atol=1e-5, rtol=1e-5)
        assert torch.equal(fitted.validation, usual.validation) and fitted.strength is not None
        assert usual.strength is not None and torch.equal(fitted.strength, usual.strength)
        assert torch.equal(fitted.predict(change(held_out)), usual.predict(held_out))


@pytest.mark.parametrize(("rows", "width"), [(50, 120), (120, 30)])
def test_batched_equals_single(rows: int, width: int) -> None:
    train, held_out, truth = make(4, rows, width, 3)
    targets = torch.stack([truth, truth.flip(0), truth.roll(7)])
    space = RowSpace(train)
    together = solve(space, targets, GRID, classes=3).logits(space.coordinates(held_out)).softmax(-1)
    for layer in range(4):
        alone = RowSpace(train[layer : layer + 1])
        for labels in range(3):
            for point, strength in enumerate(GRID):
                solution = solve(alone, targets[labels : labels + 1], strength[None], classes=3)
                chance = solution.logits(alone.coordinates(held_out[layer : layer + 1])).softmax(-1)
                torch.testing.assert_close(
                    chance[0, 0, 0], together[layer, labels, point], atol=5e-4, rtol=0, check_stride=False
                )


@pytest.mark.parametrize("cells", [1, 1 << 30])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    train, held_out, truth = make(5, 40, 70, 3)
    targets = torch.stack([truth, truth.roll(3)])

    def fit() -> Tensor:
        space = RowSpace(train)
        return solve(space, targets, GRID, classes=3).logits(space.coordinates(held_out)).softmax(-1)

    expected = fit()
    monkeypatch.setattr(logistic, "_CELLS", {"cpu": cells})
    monkeypatch.setattr(row_space, "_DECOMPOSED", {"cpu": cells})
    torch.testing.assert_close(fit(), expected, atol=5e-4, rtol=0)


def test_the_same_twice() -> None:
    train, _, truth = make(2, 40, 70, 3)
    first, second = (solve(RowSpace(train), truth[None], GRID, classes=3) for _ in range(2))
    assert torch.equal(first.weights, second.weights) and torch.equal(first.steps, second.steps)


def test_choose_keeps_one_strength() -> None:
    train, held_out, truth = make(3, 40, 20, 3)
    space = RowSpace(train)
    solution = solve(space, torch.stack([truth, truth.roll(1)]), GRID, classes=3)
    indices = torch.tensor([[0, 6], [3, 3], [5, 1]])
    chosen = solution.choose(indices)
    coordinates = space.coordinates(held_out)
    every, chosen_logits = solution.logits(coordinates), chosen.logits(coordinates)
    assert chosen_logits.shape == (3, 2, 1, HELD_OUT, 3)
    for layer, labels in np.ndindex(3, 2):
        at = int(indices[layer, labels])
        torch.testing.assert_close(chosen_logits[layer, labels, 0], every[layer, labels, at])
        assert chosen.steps[layer, labels, 0] == solution.steps[layer, labels, at]


@pytest.mark.parametrize(("rows", "width"), [(30, 80), (80, 30)])
def test_coordinates_of_the_train_rows_are_diagonal(rows: int, width: int) -> None:
    train, _, _ = make(2, rows, width, 3)
    space = RowSpace(train)
    # Of the axis that centring takes, float32 keeps nothing.
    torch.testing.assert_close(space.coordinates(train), space.train, atol=1e-3, rtol=1e-3)
    product = space.train.mT @ space.train
    torch.testing.assert_close(product, space.squares.diag_embed(), atol=1e-2, rtol=1e-3)


def test_a_problem_that_is_given_up_says_so() -> None:
    train, _, truth = make(1, 40, 80, 3)
    solution = solve(RowSpace(train), truth[None], GRID, classes=3, most_steps=2)
    assert solution.converged[0, 0].tolist()[0] is True
    assert solution.converged[0, 0].tolist()[-1] is False
    assert int(solution.steps.max()) == 2
    assert bool(solution.gradient_norm[0, 0, -1] > 1e-4)


@settings(max_examples=25)
@given(
    layers=st.integers(1, 3),
    rows=st.integers(1, 12),
    width=st.integers(1, 12),
    classes=st.integers(2, 4),
    sets=st.integers(0, 3),
    points=st.integers(1, 3),
    held_out=st.integers(1, 4),
    seed=st.integers(0, 10),
)
def test_any_shape(
    layers: int, rows: int, width: int, classes: int, sets: int, points: int, held_out: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(layers, rows, width, generator=generator).half().float()
    targets = torch.randint(classes, (sets, rows), generator=generator)
    space = RowSpace(train)
    solution = solve(space, targets, torch.logspace(-4, 1, points), classes=classes)
    logits = solution.logits(space.coordinates(torch.randn(layers, held_out, width, generator=generator)))
    assert logits.shape == (layers, sets, points, held_out, classes)
    assert bool(logits.isfinite().all())
    assert bool(solution.converged.all())
    assert solution.gradient_norm.shape == solution.steps.shape == (layers, sets, points)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_named(value: float) -> None:
    train, held_out, _ = make(3, 20, 30, 2)
    space = RowSpace(train)
    train[2, 7, 5] = value
    with pytest.raises(DataError, match=f"got {value} in layer 2, row 7, column 5"):
        RowSpace(train)
    held_out[1, 3, 4] = value
    with pytest.raises(DataError, match=f"got {value} in layer 1, row 3, column 4"):
        space.coordinates(held_out)


def test_arguments_are_checked() -> None:
    train, held_out, truth = make(2, 20, 30, 3)
    space = RowSpace(train)
    with pytest.raises(OptionError, match="`train` to be float32"):
        RowSpace(train.half())
    with pytest.raises(OptionError, match=r"`features` to have the shape \(2, rows, 30\)"):
        space.coordinates(held_out[:1])
    with pytest.raises(OptionError, match="`classes` to be at least 2"):
        solve(space, truth[None], GRID, classes=1)
    with pytest.raises(OptionError, match="`targets` to have the shape"):
        solve(space, truth[None, :-1], GRID, classes=3)
    with pytest.raises(OptionError, match="`targets` to hold int64 classes from 0 to 1"):
        solve(space, truth[None], GRID, classes=2)
    with pytest.raises(OptionError, match="`strengths` to have the shape"):
        solve(space, truth[None], GRID[None], classes=3)
    with pytest.raises(OptionError, match="`strengths` to be above 0"):
        solve(space, truth[None], torch.tensor([1.0, 0.0]), classes=3)
    for weights in (torch.ones(2, 20), torch.full((1, 20), math.nan), torch.full((1, 20), -1.0)):
        with pytest.raises(OptionError, match=r"`row_weights` to hold \(1, 20\) finite numbers of at least 0"):
            solve(space, truth[None], GRID, classes=3, row_weights=weights)
    with pytest.raises(OptionError, match="`row_weights` to be above 0 for some rows"):
        solve(space, truth[None], GRID, classes=3, row_weights=torch.zeros(1, 20))
    solution = solve(space, truth[None], GRID, classes=3)
    with pytest.raises(OptionError, match="`coordinates` to have the shape"):
        solution.logits(held_out)
    with pytest.raises(OptionError, match="`indices` to hold"):
        solution.choose(torch.tensor([[7], [0]]))


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    train, held_out, truth = make(3, 60, 120, 3)
    chances = []
    for device in ("cpu", "cuda"):
        space = RowSpace(train.to(device))
        solution = solve(space, torch.stack([truth, truth.roll(5)]), GRID, classes=3)
        assert bool(solution.converged.all())
        chances.append(solution.logits(space.coordinates(held_out.to(device))).softmax(-1).cpu())
    torch.testing.assert_close(chances[1], chances[0], atol=1e-3, rtol=0)
