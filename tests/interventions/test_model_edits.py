"""Edits of weights and outputs: they depend on the seed alone, and nothing of them is left afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions import form_edits
from medmllm_plugins.interventions.model_edits import (
    Change,
    add_noise,
    change_weights,
    edit_output,
    reset_weights,
    seeded_generator,
)

Make = Callable[[int, float], Change]
CHANGES: dict[str, Make] = {
    "noise": lambda seed, grade: add_noise(seed, 0, grade),
    "reset": lambda seed, grade: reset_weights(seed, 0, grade, 0.02),
}


@pytest.fixture
def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed_by(module: nn.Module, change: Change) -> dict[str, torch.Tensor]:
    with change_weights(module, change):
        return state(module)


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
def test_matrices_are_changed_by_the_seed_and_restored_bit_for_bit(block: nn.Sequential, make: Make) -> None:
    before = state(block)
    first, again, other = (changed_by(block, make(seed, 0.5)) for seed in (1, 1, 2))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        is_matrix = value.dim() > 1
        assert torch.equal(value, before[name]) is not is_matrix and torch.equal(value, other[name]) is not is_matrix
    with pytest.raises(ZeroDivisionError), change_weights(block, make(1, 0.5)):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_noise_has_the_standard_deviation_of_the_grade(block: nn.Sequential) -> None:
    before, after = block[0].weight.detach().clone(), changed_by(block, add_noise(3, 0, 2.0))["0.weight"]
    assert float((after - before).std() / before.std()) == pytest.approx(2.0, rel=0.1)


def test_a_stronger_reset_includes_the_weaker_one(block: nn.Sequential) -> None:
    before = block[0].weight.detach().clone()
    weak, strong = (changed_by(block, reset_weights(3, 0, grade, 0.02))["0.weight"] for grade in (0.25, 0.5))
    replaced = weak != before
    assert float(replaced.float().mean()) == pytest.approx(0.25, abs=0.06)
    assert torch.equal(weak[replaced], strong[replaced]) and int((strong != before).sum()) > int(replaced.sum())


def test_quantised_weights_are_refused(block: nn.Sequential) -> None:
    block[0].weight = nn.Parameter(torch.zeros(32, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"got 0\.weight quantised"), change_weights(block, add_noise(0, 0, 1.0)):
        pass


def test_an_edited_output_is_what_later_hooks_and_modules_see(block: nn.Sequential) -> None:
    rows, seen = torch.randn(4, 16), []
    plain = block(rows)
    handle = block[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with edit_output(block[0], torch.zeros_like):
        edited = block(rows)
    assert torch.equal(seen[0], torch.zeros(4, 32)) and torch.equal(edited, block[2](block[1](torch.zeros(4, 32))))
    handle.remove()
    assert torch.equal(block(rows), plain) and not block[0]._forward_hooks


def test_an_output_that_is_no_tensor_is_refused() -> None:
    lstm = nn.LSTM(4, 4)
    with pytest.raises(ModelError, match="Expected LSTM to return a tensor, got tuple"), edit_output(lstm, torch.relu):
        lstm(torch.zeros(2, 1, 4))
    assert not lstm._forward_hooks


def test_random_numbers_depend_on_the_whole_key() -> None:
    random = [torch.rand(3, generator=seeded_generator(*key)) for key in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2]) and not torch.equal(random[0], random[3])


def test_two_blocks_work_with_each_others_weights_and_get_theirs_back() -> None:
    torch.manual_seed(0)
    first, second, other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
    inputs = torch.randn(5, 4)
    outputs, before = [first(inputs), second(inputs)], [state(first), state(second)]
    with form_edits.exchange_weights(first, second):
        assert torch.equal(first(inputs), outputs[1]) and torch.equal(second(inputs), outputs[0])
    for block, was in zip((first, second), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in state(block).items())
    with pytest.raises(ModelError, match="the same names and shapes"), form_edits.exchange_weights(first, other):
        pass


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_transposed_rows_are_those_of_a_reshape_in_place_of_a_transposition(share: float) -> None:
    rows = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    edited, count = form_edits.transpose_rows(share)(rows), round(share * 4)
    for document, before in zip(edited, rows, strict=True):
        numbers = [float(before[row, column]) for column in range(count) for row in range(3)]
        assert document[:, :count].flatten().tolist() == numbers
        assert torch.equal(document[:, count:], before[:, count:])


def test_single_features_are_amplified_and_lose_their_sign() -> None:
    features = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    ratio = (form_edits.amplify_few(0, 30.0)(features) / features).round()
    assert sorted(ratio[0].tolist()) == [1.0] * 36 + [30.0] * 4 and bool((ratio == ratio[:1]).all())
    absolute = form_edits.take_absolute(0, 0.25)(features)
    changed = (absolute != features).any(0)
    assert torch.equal(absolute.abs(), features.abs()) and 0 < int(changed.sum()) <= 10
    assert bool((absolute[:, changed] >= 0).all())
