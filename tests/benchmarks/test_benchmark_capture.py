"""The sides of the benchmark ``capture`` answer alike, what was seen is in the store, and faults are caught."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import capture
from benchmarks.capture import Kept, captured, check, plain
from benchmarks.record import Settings, Target
from benchmarks.subjects import Subject, checkpoint, images
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.store import FeatureStore


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo() -> Subject:
    return checkpoint("demo", "cpu")


@pytest.mark.parametrize("control", [False, True])
def test_both_sides_answer_alike_and_features_are_kept(demo: Subject, tmp_path: Path, floor: bool) -> None:
    pictures = images(18)
    without, texts = plain(demo, pictures), captured(demo, pictures, tmp_path, random_encoder=floor)
    assert texts == without
    kept = Kept.of(tmp_path)
    check(without, texts, kept, exact=True)
    assert kept.documents == 18
    assert kept.size > 18 * 2 * 3072
    store = FeatureStore(tmp_path)
    assert kept.layers == len(store.header.layers) and kept.tensors > kept.layers
    assert any(layer.name.startswith("control.random_encoder") for layer in store.header.layers) is floor
    assert [row["answer"] for _, row in store.index.iterrows()] == list(texts)
    assert all(np.shape(scores) == (4,) for scores in store.index["scores"])
    assert not demo.loaded.model.model.language_model.norm._forward_hooks


def test_sides_that_differ_are_caught() -> None:
    kept = Kept(documents=2, layers=3, tensors=4, size=5)
    check(["a", "b"], ["a", "c"], kept, exact=False)
    with pytest.raises(ModelError, match="found 1 other answers and 2 documents"):
        check(["a", "b"], ["a", "c"], kept, exact=True)
    with pytest.raises(ModelError, match="found 0 other answers and 2 documents"):
        check(["a", "b", "c"], ["a", "b", "c"], kept, exact=False)


def test_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(capture.IMAGES, "tiny", 5)  # type: ignore[arg-type]
    monkeypatch.setattr(capture, "BATCH", 2)
    record = capture.run(Settings("capture", "cpu", "tiny", 1))
    assert [name for name, _ in record.sides] == ["captured", "plain"]
    assert record.target == Target("at most", 1.10)
    assert (record.details["documents"], record.details["layers"], record.details["layers_and_poolings"]) == (5, 17, 25)
    assert record.details["bytes_a_document_with_floor"] > record.details["bytes_a_document"] > 2 * 3072
    assert record.details["ratio_with_floor"] > 0
