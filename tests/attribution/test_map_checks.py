"""Checks of a map against values computed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from support.loading import load
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks import map_checks
from medmllm_plugins.attribution.checks.map_checks import (
    Removal,
    document_seed,
    importance_order,
    is_constant,
    lesion_overlap,
    patch_values,
    rank_correlation,
    structural_similarity,
    word_values,
)
from medmllm_plugins.attribution.maps import AttributionMap, build_map
from medmllm_plugins.attribution.methods.input_methods import masked_prompt_scores, word_indices
from medmllm_plugins.attribution.methods.layer_methods import Scores, completeness_gap
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.results.attribution_records import MapChecks

torch.set_num_threads(1)

QUESTION = "Is it benign?"
LABELS = ("benign", "malignant tumour", "no")
TARGET = Target.of_label("m", ("b", "m", "n"), LABELS)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def case(model: LoadedModel) -> AttributionInput:
    return AttributionInput(model, QUESTION, IMAGE, TARGET)


def fake(batch: int) -> Any:
    return SimpleNamespace(batch=batch, loaded=SimpleNamespace(device=torch.device("cpu")))


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_areas_of_an_additive_probability(batch: int) -> None:
    """Each of 10 parts carries a known share: curves are sums of what is left."""
    shares = np.array([0.3, 0.0, 0.2, 0.1, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05])
    calls: list[int] = []

    def probability(keep: Tensor) -> Tensor:
        calls.append(len(keep))
        return keep.double() @ torch.from_numpy(shares)

    removal = Removal(fake(batch), probability, 10, seed=0)
    assert max(calls) <= batch
    order = np.argsort(-shares, kind="stable")
    gone = np.concatenate([[0], shares[order].cumsum()])
    deletion = float(np.sum((1 - gone)[1:] + (1 - gone)[:-1]) / 20)
    insertion = float(np.sum(gone[1:] + gone[:-1]) / 20)
    assert removal.areas(order) == pytest.approx((deletion, insertion))
    assert removal.areas(order[::-1]) == pytest.approx((insertion, deletion))
    # By any order the two add up to the whole, so that chance is the half of it whatever orders are drawn.
    assert removal.random == pytest.approx(0.5)


@pytest.mark.parametrize("count", [1, 3, 5, 37, 1000])
def test_areas_where_parts_are_fewer_or_more_than_steps(count: int) -> None:
    removal = Removal(fake(16), lambda keep: keep[:, 0], count, seed=0)
    first, last = removal.areas(np.arange(count)), removal.areas(np.arange(count)[::-1])
    # What counts is taken away in one of the ten steps: half a step of the curve, or as late as it can be.
    taken = np.linspace(0, count, 11).round()
    soon, late = (float(np.flatnonzero(taken >= many)[0]) / 10 - 0.05 for many in (1, count))
    assert first == pytest.approx((soon, late))
    assert last == pytest.approx((late, soon))


def test_reversing_an_order_exchanges_its_areas() -> None:
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=9))
    removal = Removal(fake(16), lambda keep: torch.sigmoid(3 * keep.double() @ weights), 9, seed=0)
    order = np.random.default_rng(1).permutation(9)
    assert removal.areas(order) == pytest.approx(removal.areas(order[::-1])[::-1])
    areas = [np.mean(removal.areas(np.random.default_rng(seed).permutation(9))) for seed in range(400)]
    assert removal.random == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / np.sqrt(map_checks.RANDOM_ORDERS))


def test_documents_have_random_orders_of_their_own() -> None:
    seen: list[Any] = []

    def probability(keep: Tensor) -> Tensor:
        seen.append(keep.numpy())
        return keep[:, 0]

    for name in ("a", "b", "a"):
        Removal(fake(100), probability, 30, document_seed(name))
    first, second, again = (np.concatenate(part) for part in np.split(np.array(seen), 3))
    assert (first == again).all() and (first != second).any()


def test_equal_values_are_in_random_order() -> None:
    values = np.array([0.5, 2.0, 0.5, 0.5, -np.inf, 0.5 + 1e-12])
    orders = [importance_order(values, seed).tolist() for seed in range(40)]
    assert all(order[0] == 1 and order[-1] == 4 for order in orders)
    assert {order[1] for order in orders} == {0, 2, 3, 5}
    assert importance_order(values, 3).tolist() == orders[3]
    assert (
        not is_constant(values)
        and is_constant(values[[0, 2, 3, 4, 5]])
        and is_constant(np.array([np.nan]))
        and is_constant(np.zeros(3))
    )


def test_removal_of_patches_and_words_by_hand(case: AttributionInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_checks, "RANDOM_ORDERS", 1)
    patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)
    count = len(patches)
    order = np.random.default_rng(5).permutation(count)
    deletion, insertion = Removal.of_image(case, 0).areas(order)

    def chance(pixels: Tensor) -> float:
        with torch.no_grad():
            return float(torch.softmax(case.scores(1, (), pixels[None]), 1)[0, 1])

    curves: list[list[float]] = [[], []]
    for step in range(11):
        shown = [patches.clone(), blank.clone()]
        taken = torch.from_numpy(order[: round(step * count / 10)].copy())
        given = torch.from_numpy(order[: count - round((10 - step) * count / 10)].copy())
        shown[0][taken], shown[1][given] = blank[taken], patches[given]
        for curve, pixels_shown in zip(curves, shown, strict=True):
            curve.append(chance(from_patches(case.loaded, pixels_shown, case.pixels)))
    for curve, area in zip(curves, (deletion, insertion), strict=True):
        assert area == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 10, abs=1e-5)
    assert curves[0][0] == pytest.approx(curves[1][-1], abs=1e-5)

    words = int(word_indices(case).max()) + 1
    deletion, insertion = Removal.of_prompt(case, 0).areas(np.arange(words))
    curve = []
    for step in range(11):
        keep = torch.ones(1, words)
        keep[:, : int(np.round(step * words / 10))] = 0
        with torch.no_grad():
            curve.append(float(torch.softmax(masked_prompt_scores(case)(keep), 1)[0, 1]))
    assert deletion == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 10, abs=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(case: AttributionInput, wrong: float) -> None:
    for layer, count in (("pixels", len(to_patches(case.loaded, case.pixels))), ("prompt", len(word_indices(case)))):
        values = torch.ones(count)
        values[-1] = wrong
        with pytest.raises(ModelError, match=f"{layer}: expected finite values, got 1 of {count}"):
            build_map(case, layer, Scores(values))


def test_importance_order_begins_with_the_largest_value(case: AttributionInput) -> None:
    words = word_indices(case)
    values = torch.zeros(len(words))
    values[words == 1] = 5.0 / int((words == 1).sum())
    values[words == 0] = -1.0
    said = word_values(case, build_map(case, "prompt", Scores(values)))
    order = importance_order(said, 0)
    assert order[0] == 1 and order[-1] == 0 and sorted(order) == list(range(int(words.max()) + 1))

    count = len(to_patches(case.loaded, case.pixels))
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    map_ = build_map(case, "pixels", Scores(values))
    assert map_.painted is not None
    order = importance_order(patch_values(case, map_), 0)
    assert sorted(order) == list(range(count))
    if case.loaded.model.config.model_type in ("llava", "gemma3"):  # one patch of the tower is one of the picture
        assert list(order) == np.argsort(-values.numpy(), kind="stable").tolist()
    unseen = AttributionMap("pixels", map_.values, np.where(map_.painted > 0, np.nan, map_.painted), None, None)
    assert values[torch.from_numpy(importance_order(patch_values(case, unseen), 0)[:1].copy())] < 0


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        first, other = rng.normal(size=(4, 9)), rng.integers(0, 4, (4, 9)).astype(float)
        other += seed * first.round(1)
        assert rank_correlation(first, other) == pytest.approx(spearmanr(first.ravel(), other.ravel()).statistic)
        held = first.copy()
        held[0, :3] = np.nan
        assert rank_correlation(held, other) == pytest.approx(spearmanr(first.ravel()[3:], other.ravel()[3:]).statistic)
    assert rank_correlation(first, first) == pytest.approx(1) and rank_correlation(first, -(first**3)) == pytest.approx(
        -1
    )
    assert rank_correlation(first, np.ones_like(first)) == 0 and rank_correlation(first * np.nan, first) == 0


def test_structural_similarity() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 20, 30)), rng.normal(size=(2, 20, 30))
    assert structural_similarity(first, first) == pytest.approx(1)
    assert structural_similarity(first, 3 * first + 7) == pytest.approx(1)  # each is scaled by itself
    assert structural_similarity(first, other) == pytest.approx(structural_similarity(other, first))
    assert structural_similarity(first, other) < 0.3
    assert structural_similarity(first, np.zeros_like(first)) < 0.3
    # Windows as large as the map hold all of it: the formula itself.
    a, b = rng.uniform(size=(1, 7, 7)), rng.uniform(size=(1, 7, 7))
    for values in (a, b):
        values -= values.min()
        values /= values.max()
    windowed = []
    for down in range(7):
        for across in range(7):
            rows, columns = (np.pad(np.arange(7), 3, mode="symmetric")[at : at + 7] for at in (down, across))
            x, y = a[0][np.ix_(rows, columns)], b[0][np.ix_(rows, columns)]
            shared = ((x - x.mean()) * (y - y.mean())).mean()
            windowed.append(
                (2 * x.mean() * y.mean() + 1e-4)
                * (2 * shared + 9e-4)
                / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (x.var() + y.var() + 9e-4))
            )
    assert structural_similarity(a, b) == pytest.approx(np.mean(windowed))


def test_lesion_overlap_by_hand() -> None:
    painted = np.array([[[1.0, 2.0], [-5.0, np.nan]]])
    mask = np.array([[True, False], [True, False]])
    # Three of four pixels are seen.
    assert lesion_overlap(painted, mask) == (pytest.approx(1 / 3), pytest.approx(2 / 3), False)
    assert lesion_overlap(painted, ~mask) == (pytest.approx(2 / 3), pytest.approx(1 / 3), True)
    # A mask of another size: a quarter of the first pixel.
    fine = np.zeros((4, 4), bool)
    fine[0, 0] = True
    share, area, pointing = lesion_overlap(painted, fine)
    assert (share, area, pointing) == (pytest.approx(1 / 12, abs=2e-3), pytest.approx(1 / 12, abs=2e-3), False)
    # The largest value counts where at least half of its pixel is lesion.
    fine[0, 2] = True
    assert not lesion_overlap(painted, fine)[2]
    fine[1, 2] = True
    assert lesion_overlap(painted, fine)[2]
    assert lesion_overlap(-np.ones((1, 2, 2)), mask)[0] is None
    assert lesion_overlap(np.ones((1, 2, 2)), np.ones((5, 5), bool)) == (1, 1, True)


def test_lesion_area_is_its_share_of_the_visible_picture() -> None:
    """The middle of a picture that is twice as wide as high, as towers see it: a map that says nothing is at chance."""
    painted = np.full((1, 100, 200), np.nan)
    painted[:, :, 50:150] = 1.0
    mask = np.zeros((100, 200), bool)
    mask[30:70, 80:120] = True
    share, area, _ = lesion_overlap(painted, mask)
    assert share == area == pytest.approx(0.16)
    mask[:] = False
    mask[:, :50] = True
    assert lesion_overlap(painted, mask) == (None, None, None)  # nothing of it is seen


def test_checks_as_plain_types() -> None:
    record = MapChecks(deletion=0.5, pointing=True).to_dict()
    assert record["deletion"] == 0.5 and record["pointing"] is True and record["stability"] is None
    assert set(record) == {field for field in MapChecks.__slots__}
    assert completeness_gap(1.5, 2.0) == pytest.approx(0.25) and completeness_gap(-1.5, -2.0) == pytest.approx(0.25)
    assert map_checks.STEPS == 10
