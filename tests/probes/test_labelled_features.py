"""What folds must be to carry probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.errors import DataError
from medmllm_plugins.probes import labelled_features as module
from medmllm_plugins.probes.labelled_features import count_shared_groups, read_labelled_features, resplit


def test_documents_are_divided_by_fold(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((30, 12, 18))
    labelled = read_labelled_features(store)
    assert {fold: len(rows) for fold, rows in labelled.rows.items()} == {"train": 30, "validation": 12, "test": 18}
    labels = store.index["label"].astype(str).to_numpy()
    assert [labelled.labels[number] for number in labelled.truth] == list(labels)
    groups = store.index["group"].astype(str).to_numpy()
    assert len(set(zip(labelled.group, groups, strict=True))) == len(set(groups))
    assert labelled.groups_of("test").max() + 1 == len(set(groups[labelled.rows["test"]]))
    assert count_shared_groups(labelled) == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 30, 30), "documents in the train fold, got none"),
        ((60, 0, 30), "documents in the validation fold, got none"),
        ((60, 30, 0), "documents in the test fold, got none"),
        ((60, 30, 2), "at least 3 documents in the test fold, one per class, got 2"),
    ],
)
def test_folds_that_are_too_small(make_store: Callable[..., Any], sizes: tuple[int, int, int], message: str) -> None:
    store, _ = make_store(sizes)
    with pytest.raises(DataError, match=message):
        read_labelled_features(store)


def test_a_class_of_one_group(make_store: Callable[..., Any]) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["label"] == "normal":
                record["group"] = "the only patient"

    store, _ = make_store(change=change)
    with pytest.raises(DataError, match=r"at least two groups .*, got 1 with 'normal'"):
        read_labelled_features(store)


def test_a_class_that_train_lacks_and_one_that_is_none(make_store: Callable[..., Any]) -> None:
    def relabel(record: dict[str, Any]) -> None:
        if record["label"] == "normal" and record["fold"] == "train":
            record["label"] = "benign"

    store, _ = make_store(change=lambda records: [relabel(record) for record in records] and None)
    with pytest.raises(DataError, match=r"every class in the train fold, got no document of \['normal'\]"):
        read_labelled_features(store)

    def strange(records: list[dict[str, Any]]) -> None:
        records[0]["label"] = "cat"

    store, _ = make_store(name="strange", change=strange)
    with pytest.raises(DataError, match=r"classes among .*got \['cat'\]"):
        read_labelled_features(store)


def test_groups_across_folds_are_counted(make_store: Callable[..., Any]) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        test = [record for record in records if record["fold"] == "test"]
        test[0]["group"] = test[1]["group"] = records[0]["group"]

    store, _ = make_store(change=change)
    assert count_shared_groups(read_labelled_features(store)) == 2


def test_new_folds_keep_groups_whole_and_sizes_alike(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((120, 40, 60))
    before = read_labelled_features(store)
    first, second = (resplit(before, store, seed) for seed in (1, 2))
    for divided in (first, second):
        assert count_shared_groups(divided) == 0
        assert sorted(np.concatenate(list(divided.rows.values()))) == list(range(220))
        assert abs(len(divided.rows["train"]) - 120) < 15
    assert set(first.rows["test"]) != set(second.rows["test"])


def test_a_large_train_fold_is_subsampled_by_class(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", {"train": 60, "validation": 30})
    store, _ = make_store((300, 30, 30))
    labelled = read_labelled_features(store)
    assert abs(len(labelled.rows["train"]) - 60) <= 2
    whole = store.index["fold"].astype(str).to_numpy() == "train"
    share = np.bincount(labelled.truth[whole], minlength=3) / whole.sum()
    drawn = np.bincount(labelled.of("train"), minlength=3) / len(labelled.rows["train"])
    np.testing.assert_allclose(drawn, share, atol=0.03)
