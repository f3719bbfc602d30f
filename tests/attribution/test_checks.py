"""The numbers beside a map, by hand; and weights that come back after they were shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from medmllm_plugins.attribution.checks import map_checks, randomisation
from medmllm_plugins.attribution.checks.check_summary import format_summary, summarise_checks, to_csv
from medmllm_plugins.attribution.checks.map_checks import (
    Checks,
    Removal,
    document_seed,
    importance_order,
    is_constant,
    lesion_overlap,
    map_similarity,
    patch_values,
    rank_correlation,
    structural_similarity,
    word_values,
)
from medmllm_plugins.attribution.checks.randomisation import LEVELS, cascading_randomisation
from medmllm_plugins.attribution.document_sample import AnsweredDocument, sample_by_class
from medmllm_plugins.attribution.maps import AttributionMap, build_map
from medmllm_plugins.attribution.methods.input_methods import masked_prompt_scores, word_indices
from medmllm_plugins.attribution.methods.layer_methods import Scores, completeness_gap
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import layers_of

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


# -- deletion and insertion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_areas_of_a_probability_that_adds_up(batch: int) -> None:
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


def test_the_reverse_of_an_order_has_the_areas_exchanged() -> None:
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=9))
    removal = Removal(fake(16), lambda keep: torch.sigmoid(3 * keep.double() @ weights), 9, seed=0)
    order = np.random.default_rng(1).permutation(9)
    assert removal.areas(order) == pytest.approx(removal.areas(order[::-1])[::-1])
    found = [np.mean(removal.areas(np.random.default_rng(seed).permutation(9))) for seed in range(400)]
    assert removal.random == pytest.approx(np.mean(found), abs=4 * np.std(found) / np.sqrt(map_checks.RANDOM_ORDERS))


def test_documents_have_random_orders_of_their_own() -> None:
    seen: list[Any] = []

    def probability(keep: Tensor) -> Tensor:
        seen.append(keep.numpy())
        return keep[:, 0]

    for name in ("a", "b", "a"):
        Removal(fake(100), probability, 30, document_seed(name))
    first, second, again = (np.concatenate(part) for part in np.split(np.array(seen), 3))
    assert (first == again).all() and (first != second).any()


def lesions(documents: int) -> list[tuple[str, Any, Any]]:
    """Documents of 8 x 8 patches whose target hangs on four of them, all in the upper half: name, patches, function."""
    rng, found = np.random.default_rng(7), []
    for number in range(documents):
        row, column = rng.integers(0, 3), rng.integers(0, 7)
        own = [8 * (row + down) + column + across for down in (0, 1) for across in (0, 1)]
        found.append((f"d{number}", own, lambda keep, own=own: torch.sigmoid(8 * keep.double()[:, own].mean(1) - 4)))
    return found


def judged(values: Any, documents: int = 24) -> dict[str, Any]:
    """What the summary says of a method: ``values`` makes a map of a document's number and of its lesion's patches."""
    entries = []
    for number, (name, own, probability) in enumerate(lesions(documents)):
        removal = Removal(fake(100), probability, 64, document_seed(name))
        said = values(number, own)
        deletion, insertion = removal.areas(importance_order(said, document_seed(name)))
        found = Checks(
            deletion=deletion,
            deletion_random=removal.random,
            insertion=insertion,
            insertion_random=removal.random,
            flat=is_constant(said),
        )
        entries.append({"method": "m", "layer": "l", "group": name, "hit": True, "checks": found.to_dict()})
    (row,) = summarise_checks(entries, [])
    return row


DELETION, INSERTION = "deletion no better than a random order", "insertion no better than a random order"


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_map_does_not_pass(value: float) -> None:
    """Neither as it is, nor as painting leaves it: with the last digits rounded."""
    for rounding in (0.0, 1e-15):
        row = judged(lambda number, own, tiny=rounding: value + value * tiny * np.arange(64.0)[::-1])
        assert row["failed"] == ["says nothing of 24 of 24 documents: all values are alike", DELETION, INSERTION]
        assert abs(row["deletion_gain"]["value"]) < 0.05


def test_maps_of_noise_gain_nothing() -> None:
    rows = [
        judged(lambda number, own, seed=seed: np.random.default_rng([seed, number]).random(64)) for seed in range(8)
    ]
    assert abs(np.mean([row["deletion_gain"]["value"] for row in rows])) < 0.01
    assert sum(row["failed"] == [DELETION, INSERTION] for row in rows) >= 6


def test_a_map_of_the_lesion_passes() -> None:
    row = judged(lambda number, own: np.isin(np.arange(64), own).astype(float))
    assert row["failed"] == [] and row["flat"] == 0 and row["deletion_gain"]["value"] > 0.3


def test_a_map_that_is_constant_for_some_documents_says_so() -> None:
    row = judged(lambda number, own: np.isin(np.arange(64), own) * float(number > 2))
    assert row["failed"] == ["says nothing of 3 of 24 documents: all values are alike"]


def test_what_is_alike_comes_in_an_order_by_chance() -> None:
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
        for curve, one in zip(curves, shown, strict=True):
            curve.append(chance(from_patches(case.loaded, one, case.pixels)))
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
def test_values_that_are_no_numbers_are_the_methods_fault(case: AttributionInput, wrong: float) -> None:
    for layer, count in (("pixels", len(to_patches(case.loaded, case.pixels))), ("prompt", len(word_indices(case)))):
        values = torch.ones(count)
        values[-1] = wrong
        with pytest.raises(ModelError, match=f"{layer}: expected finite values, found 1 of {count}"):
            build_map(case, layer, Scores(values))


def test_orders_put_the_largest_first(case: AttributionInput) -> None:
    words = word_indices(case)
    values = torch.zeros(len(words))
    values[words == 1] = 5.0 / int((words == 1).sum())
    values[words == 0] = -1.0
    said = word_values(case, build_map(case, "prompt", Scores(values)))
    order = importance_order(said, 0)
    assert order[0] == 1 and order[-1] == 0 and sorted(order) == list(range(int(words.max()) + 1))

    count = len(to_patches(case.loaded, case.pixels))
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    one = build_map(case, "pixels", Scores(values))
    assert one.painted is not None
    order = importance_order(patch_values(case, one), 0)
    assert sorted(order) == list(range(count))
    if case.loaded.model.config.model_type in ("llava", "gemma3"):  # one patch of the tower is one of the picture
        assert list(order) == np.argsort(-values.numpy(), kind="stable").tolist()
    unseen = AttributionMap("pixels", one.values, np.where(one.painted > 0, np.nan, one.painted), None, None)
    assert values[torch.from_numpy(importance_order(patch_values(case, unseen), 0)[:1].copy())] < 0


# -- likeness, lesions --------------------------------------------------------------------------------------------


def test_similarity_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        one, other = rng.normal(size=(4, 9)), rng.integers(0, 4, (4, 9)).astype(float)
        other += seed * one.round(1)
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
        held = one.copy()
        held[0, :3] = np.nan
        assert rank_correlation(held, other) == pytest.approx(spearmanr(one.ravel()[3:], other.ravel()[3:]).statistic)
    assert rank_correlation(one, one) == pytest.approx(1) and rank_correlation(one, -(one**3)) == pytest.approx(-1)
    assert rank_correlation(one, np.ones_like(one)) == 0 and rank_correlation(one * np.nan, one) == 0


def test_structural_similarity() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 20, 30)), rng.normal(size=(2, 20, 30))
    assert structural_similarity(one, one) == pytest.approx(1)
    assert structural_similarity(one, 3 * one + 7) == pytest.approx(1)  # each is scaled by itself
    assert structural_similarity(one, other) == pytest.approx(structural_similarity(other, one))
    assert structural_similarity(one, other) < 0.3
    assert structural_similarity(one, np.zeros_like(one)) < 0.3
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


def test_lesion_by_hand() -> None:
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


def test_chance_of_a_lesion_is_its_share_of_what_is_seen() -> None:
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
    told = Checks(deletion=0.5, pointing=True).to_dict()
    assert told["deletion"] == 0.5 and told["pointing"] is True and told["stability"] is None
    assert set(told) == {field for field in Checks.__slots__}
    assert completeness_gap(1.5, 2.0) == pytest.approx(0.25) and completeness_gap(-1.5, -2.0) == pytest.approx(0.25)
    assert map_checks.STEPS == 10


# -- shuffled weights ---------------------------------------------------------------------------------------------


def weights(model: LoadedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def part_of(model: LoadedModel, name: str) -> str:
    """By the names in the checkpoint, of which level a weight is."""
    parts = {id(value): "head" for value in model.model.get_submodule(model.family.head).parameters()}
    found = [place for place in layers_of(model) if not place.enters]
    llm = [place.module for place in found if place.part == "llm"]
    for place in found:
        level = {"vision": "tower", "connector": "connector"}.get(place.part, "LLM")
        if place.part == "llm" and place.module in llm[len(llm) // 2 :]:
            level = "upper LLM"
        for value in place.module.parameters():
            parts.setdefault(id(value), level)
    return parts.get(id(dict(model.model.named_parameters())[name]), "none")


@contextmanager
def shuffled(model: LoadedModel, wanted: str, seed: int = 0) -> Iterator[None]:
    """The model with its weights shuffled down to a level."""
    with cascading_randomisation(model, seed) as levels:
        assert wanted in iter(levels)  # goes as far as that level
        yield


def test_levels_nest_and_weights_come_back(model: LoadedModel) -> None:
    before = weights(model)
    inputs = model.prepare([QUESTION], [IMAGE])
    of = {name: part_of(model, name) for name in before}
    reached: list[str] = []
    moved_before: set[str] = set()
    with cascading_randomisation(model) as levels:
        for level in levels:
            reached.append(level)
            during = weights(model)
            moved = {name for name in before if not torch.equal(before[name], during[name])}
            for name in moved:
                assert torch.equal(before[name].flatten().sort().values, during[name].flatten().sort().values)
            matrices = {name for name, value in before.items() if value.dim() > 1 and of[name] in reached}
            assert moved == matrices and moved_before < moved, level
            moved_before = moved
    assert tuple(reached) == LEVELS
    after = weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any("embed_tokens" in name for name in moved_before)
    again = AttributionInput(model, QUESTION, IMAGE, TARGET)
    value = again.value
    with shuffled(model, "head"):
        again.forget()
        assert abs(again.value - value) > 1e-3
        first = again.value
    with shuffled(model, "head", seed=1):
        again.forget()
        assert abs(again.value - first) > 1e-3
    again.forget()
    assert again.value == value
    assert inputs.keys() == model.prepare([QUESTION], [IMAGE]).keys()


def test_each_matrix_is_shuffled_once_and_put_back_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many levels there are: at 7 billion weights nothing else is as long."""
    calls: list[tuple[int, bool]] = []
    usual = randomisation._shuffle

    def counted(value: Tensor, seed: int, *, back: bool) -> None:
        calls.append((id(value), back))
        usual(value, seed, back=back)

    monkeypatch.setattr(randomisation, "_shuffle", counted)
    with cascading_randomisation(model) as levels:
        assert tuple(levels) == LEVELS
        assert not any(back for _, back in calls)
    there, again = ([one for one, way in calls if way == back] for back in (False, True))
    assert len(set(there)) == len(there) and again == there[::-1]


@pytest.mark.parametrize("shape", [(6, 8), (64, 40), (7, 100), (8, 3, 2, 2), (12, 1)])
def test_large_matrices_are_shuffled_in_bands(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(randomisation, "BAND", 96)
    before = torch.arange(float(np.prod(shape))).view(shape)
    value = before.clone()
    randomisation._shuffle(value, 3, back=False)
    assert torch.equal(value.flatten().sort().values, before.flatten())
    assert float((value == before).float().mean()) < 0.2
    was = (value.flatten() // before[0].numel()).view(shape[0], -1)
    if shape == (64, 40):  # in bands of two rows: each row has entries of both
        assert all(len(row.unique()) == 2 for row in was)
    randomisation._shuffle(value, 3, back=True)
    assert torch.equal(value, before)


def test_shuffling_takes_little_memory_and_time() -> None:
    """No order of all entries: one of 40 million would take 320 MB and some seconds."""
    value = torch.zeros(8192, 5000, dtype=torch.bfloat16)
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        usual = torch.randperm
        patch.setattr(torch, "randperm", lambda count, **more: drawn.append(count) or usual(count, **more))
        randomisation._shuffle(value, 0, back=False)
    assert max(drawn) <= randomisation.BAND and min(drawn) > 1


def test_weights_come_back_after_an_error(model: LoadedModel) -> None:
    before = weights(model)
    with pytest.raises(RuntimeError, match="in between"), shuffled(model, "tower"):
        raise RuntimeError("in between")
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_tied_head_leaves_the_embeddings_alone(model: LoadedModel) -> None:
    head: Any = model.model.get_submodule(model.family.head)
    embed: Any = model.model.get_submodule(model.family.embed)
    own, tied = head.weight, embed.weight
    head.weight = tied
    try:
        kept = tied.detach().clone()
        with shuffled(model, "tower"):
            assert embed.weight is tied and torch.equal(tied, kept)
            assert head.weight is not tied and not torch.equal(head.weight, kept)
        assert head.weight is tied and embed.weight is tied and torch.equal(tied, kept)
    finally:
        head.weight = own


def test_quantised_weights_cannot_be_shuffled(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert randomisation.can_shuffle(model)
    packed = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(model.model, "parameters", lambda: iter([packed]))
    assert not randomisation.can_shuffle(model)


# -- over documents -----------------------------------------------------------------------------------------------


def entry(group: str, **more: Any) -> dict[str, Any]:
    return {"method": "m", "layer": "l", "group": group, "hit": True, "checks": {**Checks().to_dict(), **more}}


def level(
    name: str, similarity: float, documents: int = 1, shape: float | None = 0.5, sizes: float = 0.0
) -> dict[str, Any]:
    both = {"similarity": similarity, "absolute_similarity": sizes}
    return {"randomised": name, **both, "structural_similarity": shape, "documents": documents}


def good(gain: float = 0.2) -> dict[str, Any]:
    return {
        "completeness_gap": 0.01,
        "deletion": 0.4,
        "deletion_random": 0.4 + gain,
        "insertion": 0.6 + gain,
        "insertion_random": 0.6,
        "stability": 0.9,
        "inside": 0.7,
        "area": 0.1,
        "pointing": True,
    }


def test_a_good_method_fails_nothing() -> None:
    entries = [entry("a", **good(0.2)), entry("b", **good(0.3)), entry("b", **good(0.1)), entry("c", **good(0.2))]
    entries.append({**entry("z"), "method": "other"})
    (row, other) = summarise_checks(
        entries, [{"method": "m", "layer": "l", "levels": [level("head", 0.9), level("tower", 0.1)]}]
    )
    assert (row["method"], row["layer"], row["n"], row["failed"]) == ("m", "l", 4, [])
    assert row["deletion_gain"]["value"] == pytest.approx(0.2) == row["insertion_gain"]["value"]
    assert 0.1 <= row["deletion_gain"]["low"] <= 0.2 <= row["deletion_gain"]["high"] <= 0.3
    assert row["inside"]["value"] == pytest.approx(0.7) and row["area"] == pytest.approx(0.1)
    assert row["pointing"]["value"] == 1
    assert [one["similarity"] for one in row["randomisation"]] == [0.9, 0.1]
    assert row["unchecked"] == [] and row["trusted"]
    assert other["n"] == 1 and other["deletion_gain"] is None and other["failed"] == []
    header, first, second = to_csv([row, other]).splitlines()
    assert len(header.split(",")) == len(first.split(",")) == len(second.split(","))
    assert dict(zip(header.split(","), first.split(","), strict=True))["survives"] == "0.1"


def test_a_check_that_was_not_made_is_not_passed() -> None:
    (row,) = summarise_checks([entry("a", **good()), entry("b", **good())], [])
    assert row["failed"] == [] and row["unchecked"] == ["randomisation"] and not row["trusted"]
    assert format_summary({"summary": [row], "warnings": []}).endswith("  randomisation not checked")
    header, line = to_csv([row]).splitlines()
    assert header.endswith(",failed,unchecked") and line.endswith(",,randomisation")
    (row,) = summarise_checks([entry("a")], [{"method": "m", "layer": "l", "levels": [level("tower", 0.1)]}])
    assert row["unchecked"] == ["deletion", "insertion", "stability"] and not row["trusted"]


def test_what_a_bad_method_fails() -> None:
    bad = good(-0.1) | {"completeness_gap": 0.4, "stability": 0.2, "inside": 0.1, "area": 0.2}
    entries = [entry("a", **bad), entry("b", **bad)]
    told = [{"method": "m", "layer": "l", "levels": [level("head", 0.1), level("tower", 0.8)]}]
    (row,) = summarise_checks(entries, told)
    assert row["failed"] == [
        "incomplete: the sum misses 40% of the difference; take more steps",
        "deletion no better than a random order",
        "insertion no better than a random order",
        "survives shuffled weights: rank correlation 0.80",
        "unstable: rank correlation 0.20 under 5 % noise",
        "no more inside the lesion than its share of the picture",
    ]


def test_maps_whose_sizes_survive_fail_however_their_signs_fall() -> None:
    """A map of edges, whose signs the weights toss: as it is, it is like no other; in size it stays the same."""
    rng = np.random.default_rng(0)
    edges = np.eye(32).repeat(2, 0).repeat(2, 1)[None] + rng.random((1, 64, 64)) / 9
    signs = [rng.choice([-1.0, 1.0], edges.shape) for _ in range(2)]
    old, new = (AttributionMap("l", edges.ravel() * sign.ravel(), edges * sign, None, None) for sign in signs)
    found = map_similarity([(old, new), (new, old)])
    assert abs(found["similarity"]) < 0.1 and found["absolute_similarity"] == pytest.approx(1)
    assert found["documents"] == 2 and found["structural_similarity"] < 0.5
    told = [{"method": "m", "layer": "l", "levels": [level("head", 0.9), {"randomised": "tower"} | found]}]
    (row,) = summarise_checks([entry("a", **good()), entry("b", **good())], told)
    assert row["failed"] == ["survives shuffled weights: rank correlation of sizes 1.00"]
    header, line = to_csv([row]).splitlines()
    assert float(dict(zip(header.split(","), line.split(","), strict=True))["survives"]) == pytest.approx(1)


def test_one_group_is_no_evidence() -> None:
    (row,) = summarise_checks([entry("a", **good()), entry("a", **good())], [])
    assert row["deletion_gain"]["low"] is None
    assert row["failed"] == [
        "deletion no better than a random order, as far as one group can tell",
        "insertion no better than a random order, as far as one group can tell",
        "no more inside the lesion than its share of the picture, as far as one group can tell",
    ]


def test_a_gain_whose_interval_holds_zero_is_none() -> None:
    (row,) = summarise_checks(
        [entry(str(place), **good(gain)) for place, gain in enumerate((0.3, -0.2, 0.2, -0.1))], []
    )
    assert row["deletion_gain"]["low"] < 0 < row["deletion_gain"]["value"]
    assert row["failed"] == ["deletion no better than a random order", "insertion no better than a random order"]


def test_hits_and_errors_are_told_apart() -> None:
    """An error's map explains another class than the lesion's, and may lie elsewhere."""
    entries = [entry("a", **good()), entry("b", **good())]
    entries += [{**entry(group, **(good() | {"inside": 0.3})), "hit": False} for group in "cd"]
    (row,) = summarise_checks(entries, [])
    assert [row[name]["value"] for name in ("inside", "inside_hits", "inside_errors")] == pytest.approx([0.5, 0.7, 0.3])
    header, line = to_csv([row]).splitlines()
    told = dict(zip(header.split(","), line.split(","), strict=True))
    assert (float(told["inside_hits"]), float(told["inside_errors"])) == pytest.approx((0.7, 0.3))
    head, said = format_summary({"summary": [row], "warnings": []}).splitlines()
    assert head.split("  inside  ")[1].split()[:2] == ["hits", "errors"] and "0.50    0.70  0.30" in said
    assert summarise_checks(entries[:2], [])[0]["inside_errors"] is None


def test_groups_are_drawn_whole() -> None:
    values = {"a": [0.1, 0.3], "b": [0.5], "c": [0.2, 0.2, 0.2]}
    entries = [entry(group, stability=value) for group, several in values.items() for value in several]
    (row,) = summarise_checks(entries, [])
    drawn = np.random.default_rng(0).integers(0, 3, (2000, 3))
    sums, counts = np.array([0.4, 0.5, 0.6]), np.array([2, 1, 3])
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    assert row["stability"] == {
        "value": pytest.approx(0.25),
        "low": pytest.approx(low, abs=1e-5),
        "high": pytest.approx(high, abs=1e-5),
    }


def test_levels_are_means_over_processes_weighted_by_documents() -> None:
    told = [
        {"method": "m", "layer": "l", "levels": [level("head", 0.2, 1), level("tower", 0.0, 1, None)]},
        {"method": "m", "layer": "l", "levels": [level("head", 0.6, 3, 0.9, 0.4), level("tower", 0.4, 3)]},
        {"method": "other", "layer": "l", "levels": [level("head", 1.0, 9)]},
    ]
    (row,) = summarise_checks([entry("a")], told)
    assert row["randomisation"] == [
        {
            "randomised": "head",
            "similarity": pytest.approx(0.5),
            "absolute_similarity": pytest.approx(0.3),
            "structural_similarity": pytest.approx(0.8),
        },
        {
            "randomised": "tower",
            "similarity": pytest.approx(0.3),
            "absolute_similarity": 0.0,
            "structural_similarity": None,
        },
    ]


def test_a_sample_has_hits_and_errors_of_each_class() -> None:
    answered = [AnsweredDocument(f"{label}{number}", label, number % 4 > 0) for label in "ab" for number in range(40)]
    answered += [AnsweredDocument(f"c{number}", "c", True) for number in range(5)]
    answered += [AnsweredDocument("d0", "d", False), AnsweredDocument("e0", "e", True)]
    chosen = sample_by_class(answered, 4)
    by = {one.id: one for one in answered}
    for label in "ab":
        own = [by[name].hit for name in chosen if by[name].label == label]
        assert own == [True, True, False, False]
    assert len([name for name in chosen if name[0] == "c"]) == 4  # no errors: hits in their place
    assert chosen[-2:] == ["d0", "e0"] and len(set(chosen)) == len(chosen)
    assert sample_by_class(answered[::-1], 4) == chosen
    assert [by[name].hit for name in sample_by_class(answered, 3)[:3]] == [True, True, False]
    assert [by[name].label for name in sample_by_class(answered, 1)] == list("abcde")
    assert [by[name].hit for name in sample_by_class(answered, 1)] == [True, True, True, False, True]


# -- the target ---------------------------------------------------------------------------------------------------


def test_targets_by_hand() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0], [-9.0, -0.5, -4.0]])
    target = Target.of_label("m", ("b", "m", "n"), LABELS)
    wanted = scores[:, 1] - torch.log(scores[:, 0].exp() + scores[:, 2].exp())
    torch.testing.assert_close(target.value(scores), wanted)
    torch.testing.assert_close(target.probability(scores), torch.sigmoid(wanted))
    answer = Target.of_answer(" a mass ")
    assert answer.answers == ("a mass",) and not answer.is_label and target.is_label
    assert torch.equal(answer.value(scores[:, :1]), scores[:, 0])
    torch.testing.assert_close(answer.probability(scores[:, :1]), scores[:, 0].exp())
    with pytest.raises(OptionError, match=r"one of \['b', 'm', 'n'\], found 'x'"):
        Target.of_label("x", ("b", "m", "n"), LABELS)
    with pytest.raises(OptionError, match="found an empty one"):
        Target.of_answer("  ")


def test_a_cascade_that_breaks_off_is_no_check_that_was_made() -> None:
    entries = [entry("a", **good(0.2)), entry("b", **good(0.3)), entry("c", **good(0.2))]
    (row,) = summarise_checks(
        entries, [{"method": "m", "layer": "l", "levels": [level("head", 0.9), level("LLM", 0.1)]}]
    )
    assert "randomisation" in row["unchecked"] and not row["trusted"]
    # Another process lacks a level in the middle: the order is the cascade's all the same.
    parts = [
        [level("head", 0.9), level("tower", 0.1)],
        [level(name, 0.9) for name in LEVELS[:-1]] + [level("tower", 0.1)],
    ]
    (row,) = summarise_checks(entries, [{"method": "m", "layer": "l", "levels": levels} for levels in parts])
    assert [one["randomised"] for one in row["randomisation"]] == list(LEVELS)
    assert row["failed"] == [] and row["trusted"]
