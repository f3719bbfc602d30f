"""Label sets that mean nothing: what they keep of the real ones, and that they cannot leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.probes.control_labels import draw_control_labels, image_types, permute_labels
from medmllm_plugins.probes.labelled_features import read_labelled_features


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60), st.integers(0, 10))
def test_permutations_keep_the_counts_of_classes(rows: list[tuple[int, int]], seed: int) -> None:
    truth, group = (np.array(column) for column in zip(*rows, strict=True))
    permuted = permute_labels(truth, group, 5, np.random.default_rng(seed))
    assert permuted.shape == (5, len(truth))
    for row in permuted:
        assert sorted(row) == sorted(truth)


def test_groups_of_one_size_keep_their_labels_together() -> None:
    group = np.repeat(np.arange(20), 3)[np.random.default_rng(0).permutation(60)]
    truth = group % 4
    for row in permute_labels(truth, group, 10, np.random.default_rng(1)):
        assert all(len(set(row[group == number])) == 1 for number in range(20))
    moved = permute_labels(truth, group, 200, np.random.default_rng(1))
    # Each label is as likely anywhere.
    np.testing.assert_allclose((moved == 0).mean(0), 0.25, atol=0.12)


def test_only_groups_of_one_size_exchange_their_labels() -> None:
    sizes = np.array([1, 1, 1, 2, 2, 5])
    group = np.repeat(np.arange(6), sizes)
    truth = np.array([0, 1, 2, 0, 1, 2, 2, 1, 1, 0, 2, 1])
    of_pairs = set()
    for row in permute_labels(truth, group, 60, np.random.default_rng(2)):
        assert sorted(row[:3]) == [0, 1, 2]
        of_pairs.add(tuple(row[3:7]))
        assert row[7:].tolist() == truth[7:].tolist()  # the only group of its size
    assert of_pairs == {(0, 1, 2, 2), (2, 2, 0, 1)}


def test_the_test_keeps_its_level_where_groups_differ_in_size() -> None:
    """Predictions and labels that are constant within groups and independent of each other."""
    generator = np.random.default_rng(5)
    rejected, trials = 0, 300
    for _ in range(trials):
        sizes = generator.choice([1, 1, 2, 3, 4, 8], size=60)
        group, truth, predicted = (
            np.repeat(values, sizes)
            for values in (np.arange(60), generator.integers(0, 2, 60), generator.integers(0, 2, 60))
        )
        permuted = permute_labels(truth, group, 199, generator)
        agreement = (permuted == predicted).mean(1)
        rejected += (1 + (agreement >= (truth == predicted).mean()).sum()) / 200 <= 0.05
    # 5% of 300 are 15; with labels laid across the borders of groups about 30 were rejected.
    assert rejected <= 22


def test_permuted_labels_are_independent_of_the_real_ones() -> None:
    truth = np.arange(300) % 3
    permuted = permute_labels(truth, np.arange(300), 50, np.random.default_rng(0))
    assert abs(float((permuted == truth).mean()) - 1 / 3) < 0.02


def test_types_are_of_groups_and_occur_in_every_fold(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((180, 60, 90), group=3)
    samples = read_labelled_features(store)
    types = image_types(store.features("control.pixels", "mean"), samples)
    for group in np.unique(samples.group):
        assert len(set(types[samples.group == group])) == 1
    folds = [set(types[rows]) for rows in samples.rows.values()]
    assert folds[0] == folds[1] == folds[2] == set(range(types.max() + 1))
    assert types.max() >= 1


def test_a_control_label_depends_on_the_type_and_not_on_the_class(
    make_store: Callable[..., Any],
) -> None:
    store, _ = make_store((300, 90, 90))
    samples = read_labelled_features(store)
    types = image_types(store.features("control.pixels", "mean"), samples)
    drawn = draw_control_labels(types, samples, 200, np.random.default_rng(0))
    for labels in drawn[:5]:
        for kind in np.unique(types):
            assert len(set(labels[types == kind])) == 1
    # Over the drawings no type prefers a class, so that a probe of the class cannot help.
    agreement = (drawn == samples.truth).mean()
    assert abs(float(agreement) - 1 / 3) < 0.03


def test_control_labels_have_about_the_entropy_of_the_real_ones(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((600, 90, 90))
    samples = read_labelled_features(store)
    types = image_types(store.features("control.pixels", "mean"), samples)
    rows = samples.rows["train"]

    def entropy(labels: Any) -> float:
        share = np.bincount(labels, minlength=3) / len(labels)
        return float(-(share[share > 0] * np.log(share[share > 0])).sum())

    real = entropy(samples.truth[rows])
    permuted = [entropy(labels[rows]) for labels in draw_control_labels(types, samples, 20, np.random.default_rng(0))]
    assert abs(float(np.mean(permuted)) - real) < 0.1


def test_pictures_that_are_all_alike_have_no_types(make_store: Callable[..., Any]) -> None:
    store, _ = make_store()
    samples = read_labelled_features(store)
    assert not image_types(np.zeros((len(store), 4), dtype=np.float32), samples).any()
