"""The sides of the benchmark ``diagnosis`` look at the same stages and answer alike, and are caught where not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import diagnosis, probe_fit
from benchmarks.diagnosis import Found, by_hand, check, documents, floors, hidden_states, one_pass, redrawn
from benchmarks.record import Settings, Target
from benchmarks.subjects import checkpoint
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.store import FeatureStore

SIZES = {"train": 96, "validation": 32, "test": 48}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "SIZES", SIZES)
    for module in (diagnosis, probe_fit):
        monkeypatch.setattr(module, "SHUFFLES", 1)
        monkeypatch.setattr(module, "CONTROLS", 0)


def test_documents_are_the_first_of_each_fold() -> None:
    found = documents(SIZES)
    assert {fold: sum(one.fold == fold for one in found) for fold in SIZES} == SIZES
    assert [one.label for one in found[:96]] == [record.label for record in phantoms.records()[:96]]
    assert {one.label for one in found if one.fold == "train"} == set(phantoms.LABELS)
    # No patient is in two folds.
    assert all(len({one.fold for one in found if one.group == group}) == 1 for group in {one.group for one in found})


def test_both_sides_look_at_the_same_and_answer_alike(tmp_path: Path) -> None:
    subject, everyone = checkpoint("demo", "cpu"), documents(SIZES)
    ours, theirs = one_pass(subject, everyone, tmp_path, random_encoder=True), by_hand(subject, everyone)
    assert ours.texts == theirs.texts and len(ours.texts) == 48
    store = FeatureStore(tmp_path)
    states = hidden_states(subject, everyone[3].picture)
    floor = {key for key in ours.accuracy if key[0].startswith("floor.")}
    assert set(states) == set(theirs.accuracy) - floor and set(theirs.accuracy) >= floor
    assert set(ours.accuracy) == {(one.name, pooling) for one in store.header.layers for pooling in one.poolings}
    model = set(ours.accuracy) - floor
    last = f"llm.{subject.loaded.model.config.text_config.num_hidden_layers - 1:02d}"
    assert model - set(states) == {(last, "mean"), (last, "last")}
    for (layer, pooling), value in states.items():
        kept = store.features(layer, pooling, np.array([3]))[0]
        np.testing.assert_allclose(kept, value.numpy(), rtol=2e-3, atol=2e-3 * float(value.abs().max()))
    folds = store.index.groupby("fold", observed=True)["scores"].apply(lambda scores: scores.notna().all())
    assert folds.to_dict() == {"train": False, "validation": True, "test": True}
    apart = {key: abs(ours.accuracy[key] - value) for key, value in theirs.accuracy.items()}
    assert max(value for key, value in apart.items() if not key[0].startswith("control.random_encoder")) < 0.1


def test_floors_by_hand_are_of_a_tower_that_was_never_trained(tmp_path: Path) -> None:
    subject, everyone = checkpoint("demo", "cpu"), documents(SIZES)
    before = {name: value.clone() for name, value in subject.loaded.model.state_dict().items()}
    found = floors(subject, redrawn(subject.loaded.model), everyone[3].picture)
    one_pass(subject, everyone, tmp_path, random_encoder=True)
    store = FeatureStore(tmp_path)
    ours = {(one.name, pooling) for one in store.header.layers for pooling in one.poolings if one.part == "control"}
    assert set(found) == ours
    kept = store.features("control.pixels", "mean", np.array([3]))[0]
    np.testing.assert_array_equal(found["control.pixels", "mean"], kept)
    own = hidden_states(subject, everyone[3].picture)
    for (layer, pooling), value in found.items():
        if layer != "control.pixels":
            trained = own[layer.removeprefix("control.random_encoder."), pooling]
            assert value.shape == trained.shape and value.isfinite().all() and value.std() > 0
            assert not torch.allclose(value, trained, atol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in subject.loaded.model.state_dict().items())


def test_sides_that_differ_are_caught() -> None:
    theirs = Found(("a", "b"), {("connector", "mean"): 0.5, ("llm.norm", "last"): 0.7}, {})
    more = {**theirs.accuracy, ("llm.norm", "last"): 0.715, ("llm.05", "last"): 0.1}
    assert check(Found(("a", "b"), more, {}), theirs) == pytest.approx(0.75)
    with pytest.raises(ModelError, match="found 1 other answers"):
        check(Found(("a", "c"), more, {}), theirs)
    with pytest.raises(ModelError, match=r"no probe of ours at \[\('connector', 'mean'\)\]"):
        check(Found(("a", "b"), {("llm.norm", "last"): 0.7}, {}), theirs)
    drawn = ("control.random_encoder.connector", "mean")  # each side draws its own weights
    with_floors = Found(("a", "b"), {**theirs.accuracy, drawn: 0.1}, {})
    assert check(Found(("a", "b"), {**more, drawn: 0.9}, {}), with_floors) == pytest.approx(0.75)
    with pytest.raises(ModelError, match=r"found \+1\.50"):
        check(Found(("a", "b"), {**more, ("llm.norm", "last"): 0.73}, {}), theirs)


def test_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = {("llm.norm", "last"): 0.5}
    made = {
        "one_pass": lambda *_, floor: Found(("a",), accuracy, {"pass": 2.0, "analysis": 1.0}),
        "by_hand": lambda *_: Found(("a",), accuracy, {"answers": 1.0, "pass": 5.0, "fits": 6.0, "floors_fits": 3.0}),
    }
    for name, side in made.items():
        monkeypatch.setattr(diagnosis, name, side)
    record = diagnosis.run(Settings("diagnosis", "cpu", None, 1))
    assert [name for name, _ in record.sides] == ["by_hand", "one_pass"]
    assert record.target == Target("at least", 5.0)
    assert (record.details["by_hand_fits_s"], record.details["one_pass_pass_s"]) == (6.0, 2.0)
    assert record.details["ratio_without_floor"] == record.details["ratio_floors_on_our_side_alone"] == 4.0
